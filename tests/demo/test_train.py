# SPDX-License-Identifier: Apache-2.0
"""The recipe with a few tiny steps: it completes, and a resumed run gives the same result as an uninterrupted one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from secateur.demo._dense import DenseStage
from secateur.demo._language import LanguageStage
from secateur.demo._loop import Batch, Stage, train
from secateur.demo.build import build_model
from secateur.demo.train import main

QUIET = Console(quiet=True)
TINY = ["--dense-steps", "2", "--dense-batch", "2", "--language-steps", "2", "--language-batch", "2"]


class Killed(Exception):
    """Stand-in for a kill: no code of the loop runs after it."""


def killed_at(stage: Any, step: int) -> Stage:
    """Let the stage raise Killed when it first reaches `step`."""
    loss, calls = stage.loss, iter(range(step + 1))

    def dying(batch: Batch) -> tuple[Tensor, dict[str, float]]:
        if next(calls) == step:
            raise Killed
        result: tuple[Tensor, dict[str, float]] = loss(batch)
        return result

    stage.loss = dying
    live: Stage = stage
    return live


@pytest.mark.parametrize("kind", [DenseStage, LanguageStage])
def test_resumed_run_ends_like_an_undisturbed_one(kind: type[DenseStage] | type[LanguageStage], tmp_path: Path) -> None:
    def stage() -> DenseStage | LanguageStage:
        return kind(build_model(), 3, 0, 1)

    undisturbed = stage()
    train(undisturbed, tmp_path, QUIET, resume=False, workers=0)
    (tmp_path / f"{undisturbed.name}.pt").unlink()

    with pytest.raises(Killed):
        train(killed_at(stage(), 2), tmp_path, QUIET, resume=False, workers=0, save_every=1)
    assert [each.name for each in tmp_path.iterdir()] == [f"{undisturbed.name}.pt"]
    resumed = stage()
    train(resumed, tmp_path, QUIET, resume=True, workers=0)

    for name, weight in undisturbed.module.state_dict().items():
        assert torch.equal(weight, resumed.module.state_dict()[name]), name


def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    train(DenseStage(build_model(), 1, 0, 1), tmp_path, QUIET, resume=False, workers=0)
    with pytest.raises(ValueError, match="belongs to a run of 1 steps, this run has 2"):
        train(DenseStage(build_model(), 2, 0, 1), tmp_path, QUIET, resume=True, workers=0)


def test_whole_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model"
    options = ["--out", str(out), "--work", str(tmp_path / "work"), "--workers", "0", "--questions", "6", *TINY]
    assert main(options) == 0
    report = json.loads((out / "training.json").read_text())
    assert report["dense"]["steps"] == report["language"]["steps"] == 2
    assert set(report["accuracy"]) == {"overall", "color", "digit", "count", "position", "digit_at", "presence"}
    assert not list(tmp_path.glob("model.*")), "leftovers of the atomic write"

    assert main(options) == 2, "an existing model must not be replaced unasked"
    assert "--force" in capsys.readouterr().err
    assert main(["--evaluate", "--out", str(out), "--questions", "6"]) == 0
    assert "overall" in capsys.readouterr().err


def test_mistakes_are_refused_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--evaluate", "--out", str(tmp_path)]) == 2
    assert "contains no model" in capsys.readouterr().err

    other = tmp_path / "llava-7b"  # a checkpoint, but not one of this recipe
    other.mkdir()
    (other / "config.json").write_text("{}")
    assert main(["--out", str(other), "--force", "--work", str(tmp_path)]) == 2
    assert "is not a model of this recipe" in capsys.readouterr().err

    (tmp_path / "dense.pt").touch()
    assert main(["--out", str(tmp_path / "model"), "--work", str(tmp_path)]) == 2
    assert "--resume" in capsys.readouterr().err
