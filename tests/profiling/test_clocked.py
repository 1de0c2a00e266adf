# SPDX-License-Identifier: Apache-2.0
"""Timing in this process, with fake receipts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from secateur.bundle.graph_plan import prefill
from secateur.bundle.layout import Layout, View
from secateur.bundle.reader import Bundle
from secateur.bundle.sampling import Sampling
from secateur.errors import InputError
from secateur.export.bundle import Exported
from secateur.profiling.clocked import ClockSettings, clock, noise
from secateur.runtime import Pipeline


@dataclass
class Answered:
    timings: dict[str, float]


class Canned:
    """Pipeline with known times: every graph takes one millisecond more each round, and one more in `full`."""

    def __init__(self, bundle: Bundle, records_steps: bool = False) -> None:
        self.bundle, self.records_steps = bundle, records_steps
        self.asked: list[str] = []

    def ask(self, image: Any, prompt: str, schedule: str, image_size: str, sampling: Sampling) -> Answered:
        assert image_size == self.bundle.manifest.layout.size
        assert sampling == Sampling(sampling.max_new_tokens), "times do not depend on the checkpoint's settings"
        self.asked.append(schedule)
        ms = float(self.asked.count(schedule)) + (schedule == "full")
        encode, rest = 2 * ms, 10 * ms
        timings = dict.fromkeys((step.graph for step in prefill(self.bundle.manifest, schedule, 1)), ms)
        return Answered(
            timings
            | {"preprocess": 1.0, "encode": encode, "prefill": rest, "first_token": 1.0 + encode + rest}
            | {"decode": 4.0, "decode_per_token": 4.0 if schedule == "full" else 0.0, "total": 99.0}
        )


def quiet(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def bundle(trt_bundle: tuple[Path, Exported]) -> Bundle:
    return Bundle.load(trt_bundle[0])


def test_figures_of_known_times(bundle: Bundle) -> None:
    vlm = Canned(bundle)
    names = list(bundle.manifest.schedules)
    chains, graphs = clock(cast(Pipeline, vlm), "", "?", names, ClockSettings(rounds=3, warmup=2), quiet)
    full, pruned = chains[0], chains[1]
    assert full.schedule == "full" and full.first_token.p50 == 1 + 12 * 5 and pruned.first_token.p50 == 1 + 12 * 4
    assert full.speed_up == 1 and pruned.speed_up == pytest.approx(61 / 49) and pruned.prefill_speed_up == 5 / 4
    assert full.decode is not None and full.decode.p50 == 4 and pruned.decode is None
    assert full.stages["preprocess"] == 1 and full.stages["vision"] == 5 and full.stages["gates"] == 0
    assert full.stages["segments"] == 5 * (len(bundle.manifest.segments) + 1), "with cos and sin"
    mine = [graph for graph in graphs if "full" in graph.shares]
    assert [graph.name for graph in mine[:3]] == ["vision", "projector", "embed"]
    assert {graph.runs for graph in mine} == {3} and {graph.compute.p50 for graph in mine} == {5.0}
    assert all(graph.shares == {"full": pytest.approx(5 / 61)} and graph.enqueue is None for graph in mine)


def test_only_the_gates_of_a_schedule_count_as_its_gates(bundle: Bundle) -> None:
    vlm = Canned(bundle)
    names = list(bundle.manifest.schedules)
    _, graphs = clock(cast(Pipeline, vlm), "", "?", names, ClockSettings(rounds=1, warmup=0), quiet)
    for name in names:
        gates = {graph.name for graph in graphs if graph.kind == "gate" and name in graph.shares}
        assert gates == {gate.graph for gate in bundle.manifest.schedules[name].gates if gate.kind != "downsample"}


def test_schedules_take_turns_in_rotating_order(bundle: Bundle) -> None:
    vlm = Canned(bundle)
    names = list(bundle.manifest.schedules)
    clock(cast(Pipeline, vlm), "", "?", names, ClockSettings(rounds=len(names), warmup=0), quiet)
    rounds = [vlm.asked[i : i + len(names)] for i in range(0, len(vlm.asked), len(names))]
    assert all(sorted(each) == sorted(names) for each in rounds)
    assert [each[0] for each in rounds] == names


def test_recorded_steps_are_recorded_before_they_are_timed(bundle: Bundle) -> None:
    vlm = Canned(bundle, records_steps=True)
    chains, _ = clock(cast(Pipeline, vlm), "", "?", ["full", "btp"], ClockSettings(rounds=2, warmup=0), quiet)
    assert vlm.asked == ["full"] * 3 + ["btp"] * 6 + ["full"] * 3
    third, sixth = chains[1].first_token.p50, chains[1].first_token.p99
    assert (third, sixth) == (1 + 12 * 3, 1 + 12 * 6), "of six answers two are timed"


def test_noise_fits_the_encoder_and_is_deterministic(bundle: Bundle) -> None:
    (image,) = (np.asarray(each) for each in noise(bundle.manifest.layout))
    assert image.shape == (*bundle.manifest.graph("vision").inputs[0].shape[2:], 3) and image.dtype == np.uint8
    assert (image == np.asarray(noise(bundle.manifest.layout)[0])).all()
    two = Layout((7,), (View(1, 4, (2, 2)), View(5, 4, (2, 2))), images=2, image_size=(6, 8))
    first, second = (np.asarray(each) for each in noise(two))
    assert first.shape == second.shape == (6, 8, 3) and not (first == second).all()


@pytest.mark.parametrize(("field", "value"), [("rounds", 0), ("warmup", -1), ("new_tokens", 0)])
def test_settings_have_bounds(field: str, value: int) -> None:
    with pytest.raises(InputError, match=rf"--{field.replace('_', '-')} is {value}; it must be at least"):
        ClockSettings(**{field: value})
