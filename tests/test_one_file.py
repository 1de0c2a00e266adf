# SPDX-License-Identifier: Apache-2.0
"""A method is one file: the commands, the tests and the README find it in a copy of the project."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOY = '''# SPDX-License-Identifier: Apache-2.0
"""Loudness: keeps the tokens of the largest norm. A toy."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

from torch import Tensor

from secateur.bundle.schedule import Schedule
from secateur.methods import base
from secateur.selection.budget import BudgetRequest, plan
from secateur.selection.selector import GateInputs, GateSite, Selector
from secateur.selection.statistics import Statistics
from secateur.selection.topk import best


@dataclass(frozen=True)
class Norm:
    """Constants of a gate."""

    power: float


@dataclass(frozen=True)
class Method(base.Method):
    """Options of the toy."""

    constants = Norm

    power: float = field(default=2.0, metadata={"help": "exponent of the norm"})

    def calibrate(self, statistics: Statistics, request: BudgetRequest) -> Schedule:
        model, dimensions = statistics.model, statistics.dimensions
        placed = plan(request, dimensions.layers, model.vision_tokens, (0,), (0.5,), earliest=0)
        return self.schedule(statistics, [replace(g, selector=asdict(Norm(self.power))) for g in placed.gates()])

    @classmethod
    def selector(cls, site: GateSite, constants: Norm) -> Selector:
        return Loudest(site.gate.keep, constants.power)


class Loudest(Selector):
    def __init__(self, keep: int, power: float) -> None:
        super().__init__()
        self.keep, self.power = keep, power

    def forward(self, rows: GateInputs) -> Tensor:
        return best(rows.vision.float().abs().pow(self.power).sum(-1), self.keep)
'''


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the toy method, and `random` as the only other method to keep the tests few."""
    copy = tmp_path_factory.mktemp("one-file") / "project"
    shutil.copytree(ROOT / "secateur", copy / "secateur", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "README.md", "export.py"):
        shutil.copy(ROOT / name, copy / name)
    for path in (copy / "secateur/methods").glob("[a-z]*.py"):
        if path.stem not in ("base", "random"):
            path.unlink()
    (copy / "secateur/methods/loudness.py").write_text(TOY)
    return copy


def run(tree: Path, *command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_command_line(tree: Path) -> None:
    shown = run(tree, "export.py", "--method", "loudness", "-h")
    assert "options of loudness" in shown and "--power" in shown and "exponent of the norm" in shown
    made = run(
        tree, "-m", "secateur", "calibrate", "--method", "loudness", "--power", "3", "--compression", "0.75", "--json"
    )
    (schedule,) = json.loads(made)["schedules"].values()
    assert schedule["gates"] == [{"layer": 0, "kind": "prune", "keep": 36}]
    assert json.loads((tree / "loudness-25.json").read_text())["gates"][0]["selector"] == {"power": 3.0}
    every = run(
        tree,
        "-m",
        "secateur",
        "calibrate",
        "--method",
        "random,loudness",
        "--compression",
        "0.5",
        "--out",
        "build/both",
        "--json",
    )
    assert set(json.loads(every)["schedules"]) == {"random-50", "loudness-50"}


def test_matrix(tree: Path) -> None:
    shown = run(
        tree,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-n",
        "0",
        "-k",
        "loudness",
        "tests/methods/test_discovered.py",
        "tests/test_invariants.py",
    )
    summary = shown.strip().splitlines()[-1]
    assert int(summary.split(" passed")[0].split()[-1]) >= 15 and "failed" not in summary, shown


def test_readme_table(tree: Path) -> None:
    run(tree, "-m", "tests.table")
    assert (
        "| `--method` | `loudness` | Loudness: keeps the tokens of the largest norm. A toy. |"
        in (tree / "README.md").read_text()
    )
