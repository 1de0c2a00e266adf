# SPDX-License-Identifier: Apache-2.0
"""What cannot be done is refused before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from secateur.api import Calibration
from secateur.calibration import schedules
from secateur.calibration.samples import Sample
from secateur.calibration.schedules import check, make_schedules
from secateur.cli import main
from secateur.errors import BadModel, BadSchedule
from secateur.families.base import Family
from secateur.selection.budget import BudgetRequest
from secateur.selection.statistics import Statistics
from tests.conftest import METHODS, method, tiny_family

FROM_LAYER_1 = ("btp", "dart", "fastv", "fitprune", "pdrop", "v2drop")
"""Methods that read a layer, so that the first layer has all tokens: at most 0.72 of 4 layers and 36 tokens."""


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "measure", lambda *_: pytest.fail("something was measured"))


def test_a_budget_out_of_reach_names_every_method(tiny: Family, unmeasured: None) -> None:
    chosen = [method(name) for name in METHODS if name not in ("alvts",)]
    with pytest.raises(BadSchedule, match="method btp cannot meet the request") as problem:
        make_schedules(tiny, chosen, [BudgetRequest(compression=0.6), BudgetRequest(compression=0.89)])
    assert "(nor can dart, fastv, fitprune, pdrop, v2drop): compression 0.89 is out of reach" in str(problem.value)


@pytest.mark.parametrize("name", METHODS)
def test_one_method_gives_its_own_reason(tiny: Family, unmeasured: None, name: str) -> None:
    request = BudgetRequest(compression=0.89)
    if name in FROM_LAYER_1:
        with pytest.raises(BadSchedule, match=r"^compression 0.89 is out of reach for 36 tokens \(layer 1 of 4"):
            make_schedules(tiny, [method(name)], [request])
    else:
        check(tiny, [method(name)], [request])


@pytest.mark.parametrize("name", METHODS)
def test_layers_outside_of_the_model(tiny: Family, unmeasured: None, name: str) -> None:
    with pytest.raises(BadSchedule):
        make_schedules(tiny, [method(name)], [BudgetRequest(layers=(9,))])


def test_what_a_measurement_decides_is_not_refused(tiny: Family) -> None:
    """With a final drop, the calibrated layer of the drop decides what is within reach."""
    check(tiny, [method("btp", final_drop=True)], [BudgetRequest(compression=0.71)])


def test_blocks_that_do_not_divide_are_refused_at_once(
    capsys: pytest.CaptureFixture[str], unmeasured: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from secateur.checkpoints import tiny_model

    monkeypatch.setitem(tiny_model.TEXT, "hidden_size", 96)
    made = tiny_family("llava")
    made.model.save_pretrained(tmp_path / "model")
    made.processor.save_pretrained(tmp_path / "model")
    capsys.readouterr()
    arguments = ["export", "--model", str(tmp_path / "model"), "--target", "tensorrt", "--quantize", "int4"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "a weight of 96 inputs cannot be stored in blocks of 128; use --target cuda" in said
    assert said.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "name", "why"),
    [
        ("llava_next", "visionzip", "would merge newlines with patches"),
        ("qwen3_vl", "downsample", "gives DeepStack planes, so it cannot take a smaller image"),
    ],
)
def test_what_the_encoder_cannot_do_is_refused_before_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, family: str, name: str, why: str
) -> None:
    def measure(family: Family, samples: Sequence[Sample], wanted: frozenset[str], *rest: Any) -> list[Statistics]:
        assert not wanted, "something was measured"
        return whole(family, samples, wanted, *rest)

    whole = schedules.measure
    monkeypatch.setattr(schedules, "measure", measure)
    chosen = Calibration(methods=[method(name), method("btp")], compressions=(0.5,))
    with pytest.raises(BadModel, match=why):
        chosen.run(tiny_family(family))
