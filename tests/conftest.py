# SPDX-License-Identifier: Apache-2.0
"""Models and bundles that many tests share, made once a session."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur import methods, models, plugins
from secateur.artifacts import Schedule
from secateur.calibration.capture import capture
from secateur.calibration.samples import Sample
from secateur.demo.scenes import samples
from secateur.export.bundle import Exported, export
from secateur.export.targets import target
from secateur.methods.base import BudgetRequest, Method
from secateur.models.base import Family, load

ROOT = Path(__file__).parent.parent
torch.set_num_threads(2)


@pytest.fixture(scope="session", params=plugins.names(models))
def tiny(request: pytest.FixtureRequest) -> Family:
    """A random four-layer model of each family."""
    module = plugins.load(models, request.param, "model family")
    made: Family = module.Family.tiny()
    return made


@pytest.fixture(scope="session")
def demo() -> Family:
    """The trained demo model in fp32."""
    return load("demo")


def schedules(family: Family, layers: tuple[int, ...], keep: tuple[float, ...], **extra: Method) -> list[Schedule]:
    """One schedule of every method, and of the given methods by name."""
    found = {name: plugins.load(methods, name, "method").Method() for name in plugins.names(methods)} | extra
    made = []
    for name, method in found.items():
        few = [Sample(s.image, "w1 w2 w3") for s in samples("calibration", 2, 0)] if method.statistics else []
        statistics = capture(family, few, method.statistics)
        schedule = method.calibrate(statistics, BudgetRequest(keep=keep, layers=layers))
        made.append(Schedule(**{**vars(schedule), "name": name}))
    return made


@pytest.fixture(scope="session")
def tiny_bundle(tiny: Family, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    """A bundle of the tiny model with every method, one that keeps all tokens, and a text query."""
    from secateur.methods.btp import Method as Btp

    text = schedules(tiny, (1, 3), (0.5, 5), **{"btp-text": Btp(query="text")})
    everything = schedules(tiny, (1, 3), (1.0, 1.0))
    chosen = text + [Schedule(**{**vars(s), "name": f"{s.name}-all"}) for s in everything]
    folder = tmp_path_factory.mktemp("bundles") / f"tiny-{tiny.name}"
    return folder, export(tiny, chosen, target("cpu"), folder)


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What the README's `python export.py --method btp --json` writes, and what it prints."""
    folder = tmp_path_factory.mktemp("demo") / "demo-btp"
    command = [sys.executable, "export.py", "--method", "btp", "--json", "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return folder, printed
