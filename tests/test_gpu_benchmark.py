# SPDX-License-Identifier: Apache-2.0
"""The benchmark on a GPU, here on the CPU with tiny models: contenders, rows, tokens, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_models import MODELS
from secateur.cli import one_line

ROUNDS, STEPS = 2, 3


def run(*words: object) -> int:
    """Run the benchmark with this command line; return its exit code."""
    before = sys.argv
    sys.argv = ["gpu", *map(str, words)]
    try:
        return one_line(gpu.main)
    finally:
        sys.argv = before


def measured(path: Path, device: str) -> dict[str, Any]:
    """Return the JSON of a run with tiny models; NaN and infinity are refused."""
    assert run("--tiny", "--device", device, "--rounds", ROUNDS, "--steps", STEPS, "--out", path) == 0
    found: dict[str, Any] = json.loads(path.read_text(), parse_constant=pytest.fail)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return measured(tmp_path_factory.mktemp("gpu") / "out.json", "cpu")


def test_every_contender_is_measured(found: dict[str, Any]) -> None:
    assert [model["model"] for model in found["models"]] == list(MODELS)
    for model in found["models"]:
        pruned = [row["schedule"] for row in model["rows"] if row["contender"] == "segments"][1:]
        assert len(set(pruned)) == len(gpu.COMPRESSIONS) == 4
        pairs = [("FastV patch", "segments")] * 4
        expected = [("transformers", "full"), ("segments", "full")]
        expected += [(name, schedule) for schedule, pair in zip(pruned, pairs, strict=True) for name in pair]
        assert [(row["contender"], row["schedule"]) for row in model["rows"]] == expected
        assert model["failed"] == []


def test_every_figure_has_quartiles_and_ratios(found: dict[str, Any]) -> None:
    for row in (row for model in found["models"] for row in model["rows"]):
        for figure in gpu.FIGURES:
            ms = row[f"{figure}_ms"]
            assert 0 < ms["low"] <= ms["median"] <= ms["high"] and ms["n"] == ROUNDS
            assert row["speed_up_over_full"][figure] > 0 and row["speed_up_over_transformers"][figure] > 0
        if row["schedule"] == "full":
            assert set(row["speed_up_over_full"].values()) == {1.0}
    assert {"device", "torch", "transformers", "secateur", "python"} <= found["machine"].keys()
    assert (found["schema"], found["dtype"], found["seed"], found["tiny"]) == (1, "float32", 0, True)


def test_rows_are_those_of_the_schedules(found: dict[str, Any]) -> None:
    for model in found["models"]:
        rows, tokens, layers = model["prompt_rows"], model["vision_tokens"], model["shape"]["layers"]
        for row in model["rows"]:
            each, full = row["rows_per_layer"], row["schedule"] == "full"
            assert len(each) == layers and each[0] == rows and (each[1:] == [rows] * (layers - 1)) == full
            share = 1 - (sum(each) - layers * (rows - tokens)) / (layers * tokens)
            assert share == pytest.approx(row["compression"], abs=1e-6)
        asked = [row["compression"] for row in model["rows"] if row["contender"] == "segments"]
        assert asked == pytest.approx((0, *gpu.COMPRESSIONS), abs=0.5 / tokens)


def test_contenders_of_one_schedule_generate_the_same_tokens(found: dict[str, Any]) -> None:
    """So our segments equal transformers, our gates the patch, and both caches hold the right rows."""
    for model in found["models"]:
        answers: dict[str, list[list[int]]] = {}
        for row in model["rows"]:
            answers.setdefault(row["schedule"], []).append(row["tokens"])
        assert all(len(a) == len(b) == STEPS + 1 and a == b for a, b in answers.values())
        assert len({tuple(a) for a, _ in answers.values()}) > 1, "pruning changes nothing"


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("--out", tmp_path / "out.json") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("secateur: error: this benchmark needs a CUDA device") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_wrong_use(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "out.json").touch()
    for words, said in (
        (("--rounds", 0), "--rounds is 0; it must be at least 1"),
        (("--steps", 0), "--steps is 0; it must be at least 1"),
        (("--out", tmp_path / "out.json"), "exists; add --force"),
    ):
        assert run("--tiny", "--device", "cpu", *words) == 2
        assert said in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_on_a_gpu(tmp_path: Path) -> None:
    for model in measured(tmp_path / "out.json", "cuda")["models"]:
        assert model["failed"] == []
        recorded = [row for row in model["rows"] if row["contender"] == "segments, CUDA graphs"]
        eager = [row for row in model["rows"] if row["contender"] == "segments"]
        assert [row["tokens"] for row in recorded] == [row["tokens"] for row in eager]
