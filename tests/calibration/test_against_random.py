# SPDX-License-Identifier: Apache-2.0
"""Schedules against random tokens; test_invariants.py compares every method with the answers of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from secateur import families, plugins
from secateur.bundle.schedule import Schedule
from secateur.calibration import against_random, resume
from secateur.calibration.against_random import compared
from secateur.calibration.samples import Sample
from secateur.checkpoints import streaming
from secateur.errors import SecateurWarning
from secateur.families.base import Family
from secateur.selection.budget import BudgetRequest
from tests import checks
from tests.conftest import method, schedules, tiny_family
from tests.reference import masked_logits

TWO_GATES = BudgetRequest(keep=(0.5, 0.25), layers=(0, 2))
FEW = [Sample(checks.picture(i), question) for i, question in enumerate((checks.QUESTION, checks.LONGER))]
pytestmark = pytest.mark.filterwarnings("ignore::secateur.errors.SecateurWarning")


class Killed(Exception):
    """Stands for the end of a killed process."""


def strided(family: Family) -> Schedule:
    (schedule,) = schedules(family, {"stride": method("stride")}, TWO_GATES)
    return schedule


def random_tokens(family: Family, schedule: Schedule, seed: int) -> dict[int, list[int]]:
    """Return the tokens that a random choice keeps from each gate on: slots among those alive of each view."""
    alive, kept = [list(members) for members in family.layout.members], dict[int, list[int]]()
    for gate in schedule.gates:
        for i, part in enumerate(gate.of_views):
            order = np.random.RandomState([seed, gate.layer]).permutation(len(alive[i]))
            alive[i] = [alive[i][slot] for slot in sorted(order[: part.keep])]
        kept[gate.layer] = sorted(int(token) for tokens in alive for token in tokens)
    return kept


def logits(family: Family, sample: Sample, kept: dict[int, list[int]]) -> torch.Tensor:
    """Return the logits [V] of the next token by transformers' own layers, with dropped tokens masked."""
    pixels = checks.pixels(family, (sample.image,) * family.images)  # type: ignore[arg-type]
    rows = checks.tokenizer(family).first(sample.question)
    return torch.from_numpy(masked_logits(family, pixels, rows, kept)[-1])


@pytest.mark.parametrize("name", plugins.names(families))
def test_the_divergence_is_that_of_masked_runs(name: str) -> None:
    """Of every family: tiles that interleave, M-RoPE, DeepStack planes, prompts that are read both ways."""
    family = tiny_family(name)
    schedule, expected = strided(family), list[float]()
    for seed, sample in enumerate(FEW):
        full, pruned = logits(family, sample, {}), logits(family, sample, random_tokens(family, schedule, seed))
        one, other = full.log_softmax(-1), pruned.log_softmax(-1)
        expected.append(float(torch.nn.functional.kl_div(other, one, log_target=True, reduction="sum")))
    (found,) = compared(family, [schedule], FEW)
    assert found.calibration["against_random"]["random"] == pytest.approx(np.mean(expected), rel=0.01, abs=2e-6)
    assert found.gates == schedule.gates and found.calibration.items() >= schedule.calibration.items()


@pytest.mark.parametrize("name", ["alvts", "btp", "cls", "downsample", "vtw"])
def test_weights_in_files_give_the_same(name: str, tiny: Family, tmp_path: Path) -> None:
    tiny.model.save_pretrained(tmp_path, max_shard_size="60KB")
    model = streaming.stream(type(tiny).architecture, tmp_path)
    assert model is not None
    files = type(tiny)(model, tiny.processor, tiny.source).at(tiny.image_size)
    made = schedules(tiny, {name: method(name)}, BudgetRequest(compression=0.5))
    assert compared(files, made, FEW) == compared(tiny, made, FEW)


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("name", ["alvts", "fastv"])
def test_a_killed_comparison_goes_on(
    name: str, layer: int, tiny: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers are equal, finished layers do not run again, and no file is left at the end."""
    monkeypatch.setattr(resume, "EVERY", 0.0)
    made, told = schedules(tiny, {name: method(name)}, BudgetRequest(compression=0.5)), list[int]()
    whole = compared(tiny, made, FEW)

    def killing(stage: str, note: str, done: int, total: int) -> None:
        if done == layer + 1:
            raise Killed

    with pytest.raises(Killed):
        compared(tiny, made, FEW, killing, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert compared(tiny, made, FEW, lambda stage, note, done, total: told.append(done), tmp_path) == whole
    assert told == list(range(layer, 5)) and not list(tmp_path.iterdir())


def test_groups_are_measured_alike(tiny: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """More schedules than fit into memory at once are measured in groups."""
    names = ("btp", "fastv", "random", "stride")
    made = schedules(tiny, {name: method(name) for name in names}, BudgetRequest(compression=0.5))
    together = compared(tiny, made, FEW)
    monkeypatch.setattr(against_random, "BYTES", 1)
    assert compared(tiny, made, FEW) == together
    assert together[2] is made[2]  # random tokens are not compared with random tokens
    assert ["against_random" in schedule.calibration for schedule in together] == [True, True, False, True]


def test_at_most_eight_samples(tiny: Family) -> None:
    schedule = strided(tiny)
    (found,) = compared(tiny, [schedule], FEW * 6)
    assert found.calibration["against_random"]["samples"] == 8
    assert compared(tiny, [schedule], []) == [schedule]


@pytest.mark.parametrize(
    ("own", "random", "warned"),
    [
        ([0.2, 0.3, 0.1, 0.1], [0.1, 0.1, 0.2, 0.1], True),
        ([0.1, 0.1, 9.0, 0.1], [0.2, 0.2, 0.2, 0.2], False),
        ([0.1, 0.1], [0.1, 0.1], False),
    ],
    ids=["worse", "one outlier", "equal"],
)
def test_a_method_that_loses(
    own: Sequence[float], random: Sequence[float], warned: bool, tiny: Family, recwarn: pytest.WarningsRecorder
) -> None:
    schedule = replace(strided(tiny), name="worse")
    against_random._recorded(schedule, np.array(own, np.float32), np.array(random, np.float32))
    text = [str(each.message) for each in recwarn if each.category is SecateurWarning]
    assert [message.startswith("schedule 'worse' changes the next token more than random") for message in text] == (
        [True] if warned else []
    )
