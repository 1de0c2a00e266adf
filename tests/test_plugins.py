# SPDX-License-Identifier: Apache-2.0
"""Every plug-in can be loaded, and importing has no side effects."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

from secateur import commands, families, methods, plugins
from secateur.errors import UnknownName
from secateur.evaluation import tasks
from secateur.evaluation.tasks.base import Task
from secateur.families.base import Family
from secateur.methods.base import Method
from secateur.runtime import backends
from secateur.runtime.backends.base import Backend

KINDS = [
    (methods, "Method", Method),
    (families, "Family", Family),
    (backends, "Backend", Backend),
    (tasks, "Task", Task),
]


@pytest.mark.parametrize(("package", "name", "base"), KINDS, ids=["methods", "models", "backends", "tasks"])
def test_every_file_is_a_plug_in(package: ModuleType, name: str, base: type) -> None:
    found = plugins.names(package)
    assert found and "base" not in found and not any(n.startswith("_") for n in found)
    for plugin in found:
        assert issubclass(getattr(plugins.load(package, plugin, "plug-in"), name), base)


def test_every_command_has_the_parts_of_a_command() -> None:
    for name in plugins.names(commands):
        module = plugins.load(commands, name, "command")
        assert module.HELP and module.__doc__ and all(hasattr(module, x) for x in ("add_arguments", "run", "show"))


def test_unknown_names_get_a_hint() -> None:
    with pytest.raises(UnknownName) as problem:
        plugins.load(methods, "btb", "method")
    text = str(problem.value)
    assert "unknown method 'btb'. Did you mean 'btp'? Available:" in text
    assert "create secateur/methods/btb.py" in text and "\n" not in text
    for name in ("", "base", "../btp"):
        with pytest.raises(UnknownName) as problem:
            plugins.load(methods, name, "method")
        assert "create" not in str(problem.value)


def test_importing_changes_nothing() -> None:
    code = (
        "import sys; from transformers import AttentionInterface as A\n"
        "before = dict(A._global_mapping), list(sys.path)\n"
        "import secateur, secateur.cli, secateur.export.bundle, secateur.calibration.capture, secateur.families.llava\n"
        "import secateur.runtime.backends.ort, secateur.runtime.backends.torch, secateur.methods.btp\n"
        "assert before == (dict(A._global_mapping), list(sys.path))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
