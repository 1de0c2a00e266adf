# SPDX-License-Identifier: Apache-2.0
"""Models and bundles that many tests share, made once a session."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from xdist.scheduler import LoadScopeScheduling

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
COMPRESSION = 0.5
METHODS = plugins.names(methods)
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {  # what changes the wiring of a graph, beside every method's defaults
    "btp-text": ("btp", {"query": "text"}),
    "fopru-row-compact": ("fopru", {"strategy": "row", "positions": "compact"}),
    "pdrop-compact": ("pdrop", {"positions": "compact"}),
    "alvts-group": ("alvts", {"group": 2, "selectors": "svd"}),
}
VARIANTS = [name for name, (method, _) in OPTIONS.items() if method in METHODS]
torch.set_num_threads(1)  # two workers run side by side


class ByBundle(LoadScopeScheduling):  # type: ignore[misc]
    """One worker runs all files that share a bundle, which takes long to make; else one worker a file."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        text = (ROOT / file).read_text(encoding="utf-8")
        return next((name for name in ("tiny_bundle", "demo_bundle") if name in text), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByBundle:
    return ByBundle(config, log)


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


def method(name: str, **options: Any) -> Method:
    """The method `name` with these options."""
    made: Method = plugins.load(methods, name, "method").Method(**options)
    return made


def schedules(family: Family, chosen: dict[str, Method], request: BudgetRequest) -> list[Schedule]:
    """A schedule of each of the methods, by name."""
    few = [Sample(s.image, "w1 w2 w3") for s in samples("calibration", 2, 0)]
    wanted = frozenset[str]().union(*(method.statistics for method in chosen.values()))
    statistics = capture(family, few, wanted)
    return [replace(method.calibrate(statistics, request), name=name) for name, method in chosen.items()]


@pytest.fixture(scope="session")
def tiny_bundle(tiny: Family, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    """A bundle of the tiny model with every method, some variants, and every method keeping all tokens."""
    every = {name: method(name) for name in METHODS}
    special = {name: method(OPTIONS[name][0], **OPTIONS[name][1]) for name in VARIANTS}
    chosen = schedules(tiny, every | special, BudgetRequest(compression=COMPRESSION))
    chosen += [replace(s, name=f"{s.name}-all") for s in schedules(tiny, every, BudgetRequest(keep=(1.0,)))]
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
