# SPDX-License-Identifier: Apache-2.0
"""Profiles and cases, compared with the shapes that the runtime uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.bundle.graph_plan import USUAL_TEXT, prefill, usual_schedule
from secateur.bundle.manifest import GateRef, GraphSpec, Manifest, ScheduleRef
from secateur.bundle.sampling import Sampling
from secateur.engines.cases import KINDS, Case
from secateur.engines.manifest import Limits, Profile
from secateur.engines.shapes import cases, dynamic, profiles
from secateur.errors import BadBundle, BadPrompt, UnknownName
from secateur.export.bundle import Exported
from secateur.runtime import Bundle, Pipeline
from secateur.runtime.backends import ort
from secateur.runtime.backends.base import Buffer

Shapes = dict[str, tuple[int, ...]]
Trt = tuple[Path, Exported]
LIMITS = Limits(batch=3, text=24, new_tokens=6)
IMAGE = np.full((24, 24, 3), 90, np.uint8)


class Recording(ort.Backend):
    """Backend that records the shapes of all inputs of every run."""

    def __init__(self, bundle: Bundle, past: int = 0) -> None:
        super().__init__(bundle, threads=1)
        self.runs: list[tuple[str, Shapes]] = []
        self.masked_past = past

    def run(self, graph: str, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        self.runs.append((graph, {name: buffer.shape for name, buffer in inputs.items()}))
        super().run(graph, inputs, outputs)


class Fixed(Recording):
    """Backend with the requirements of the TensorRT backend."""

    fixed_shapes = True

    def __init__(self, bundle: Bundle, past: int = 0) -> None:
        super().__init__(bundle, past)
        self.most_rows = LIMITS.capacity(bundle.manifest.layout)


class Opened:
    """Bundle on the recording backend. `question(n)` has n rows with its template."""

    def __init__(self, path: Path, backend: type[Recording] = Recording, past: int = 0) -> None:
        self.bundle = Bundle.load(path)
        self.manifest = self.bundle.manifest
        self.backend = backend(self.bundle, past)
        self.vlm = Pipeline(self.bundle, self.backend)
        self.template = self.rows("w1") - 1

    def rows(self, question: str) -> int:
        self.vlm.ask(IMAGE, question, schedule="full", max_new_tokens=1)
        (embedded,) = [shapes["input_ids"][1] for graph, shapes in self.drain() if graph == "embed"]
        layout = self.manifest.layout
        return embedded - layout.image_start - layout.vision_tokens

    def question(self, rows: int) -> str:
        return " ".join(["w1"] * (rows - self.template))

    def drain(self) -> list[tuple[str, Shapes]]:
        runs, self.backend.runs = self.backend.runs, []
        return runs


@pytest.fixture(scope="module")
def opened(trt_bundle: Trt) -> Opened:
    return Opened(trt_bundle[0])


MODES = {"grows": (Recording, 0), "fixed": (Fixed, 0), "masked": (Recording, 1), "fixed and masked": (Fixed, 1)}


@pytest.fixture(scope="module", params=list(MODES.values()), ids=list(MODES))
def any_mode(request: pytest.FixtureRequest, trt_bundle: Trt) -> Opened:
    return Opened(trt_bundle[0], *request.param)


def inside(shapes: Shapes, profile: Profile, graph: GraphSpec) -> bool:
    """Check that every dynamic input is in its range; static inputs have no range."""
    assert set(profile.ranges) == set(dynamic(graph))
    return all(
        all(low <= size <= high for low, size, high in zip(r.min, shapes[name], r.max, strict=True))
        for name, r in profile.ranges.items()
    )


def fitting(made: Mapping[str, tuple[Profile, ...]], manifest: Manifest, run: tuple[str, Shapes]) -> list[str]:
    graph, shapes = run
    return [p.name for p in made[graph] if inside(shapes, p, manifest.graph(graph))]


@given(data=st.data())
@settings(max_examples=25)
def test_every_run_is_inside_a_profile(any_mode: Opened, data: st.DataObject) -> None:
    opened = any_mode
    made = profiles(opened.manifest, LIMITS, usual_schedule(opened.manifest), opened.backend.masked_past)
    schedule = data.draw(st.sampled_from(sorted(opened.manifest.schedules)))
    lengths = data.draw(st.lists(st.integers(opened.template + 1, LIMITS.text), min_size=1, max_size=LIMITS.batch))
    new = data.draw(st.integers(1, LIMITS.new_tokens))
    opened.drain()
    opened.vlm.ask([IMAGE], [opened.question(n) for n in lengths], schedule=schedule, max_new_tokens=new)
    for run in opened.drain():
        assert fitting(made, opened.manifest, run), run


@pytest.mark.parametrize("batch", [1, LIMITS.batch])
def test_each_stage_has_its_profile(any_mode: Opened, batch: int) -> None:
    """A long question, an answer, and a follow-up question that fills the cache completely."""
    opened, manifest = any_mode, any_mode.manifest
    made = profiles(manifest, LIMITS, "full", opened.backend.masked_past)
    chat = opened.vlm._chat([opened.vlm._sizes.prepare(IMAGE, None)], batch, "full", LIMITS.capacity(manifest.layout))
    opened.drain()
    turn = chat.begin([opened.question(LIMITS.text - 1)] * batch, Sampling(2, 0.0, 1.0, 0))
    segments = [run for run in opened.drain() if run[0].startswith("segment")]
    assert segments and all(fitting(made, manifest, run) == ["prefill"] for run in segments)
    turn.answers()
    segments = [run for run in opened.drain() if run[0].startswith("segment")]
    assert segments and all("decode" in fitting(made, manifest, run) for run in segments)
    with pytest.raises(BadPrompt, match="no room in the cache"):
        chat.begin([opened.question(LIMITS.text)] * batch, Sampling(1, 0.0, 1.0, 0))
    chat.begin([opened.question(opened.template + 1)] * batch, Sampling(1, 0.0, 1.0, 0))
    for run in opened.drain():
        assert fitting(made, manifest, run), run


@pytest.mark.parametrize("new", [5, 100], ids=["the most", "rounded"])
@pytest.mark.parametrize("past", [0, 1])
def test_cases_equal_the_runs_of_a_schedule(trt_bundle: Trt, past: int, new: int) -> None:
    """Cases equal a run of a usual question with the longest default answer, with the same cache size."""
    opened, limits = Opened(trt_bundle[0], Fixed, past), Limits(text=USUAL_TEXT + 10, new_tokens=new)
    opened.backend.most_rows = limits.capacity(opened.manifest.layout)
    made = cases(opened.manifest, limits, past)
    for schedule in opened.manifest.schedules:
        opened.drain()
        chat = opened.vlm._chat([opened.vlm._sizes.prepare(IMAGE, None)], 1, schedule, None)
        turn = chat.begin([opened.question(USUAL_TEXT)], Sampling(min(Sampling().max_new_tokens, new)))
        answers = iter(turn)
        next(answers), next(answers)
        runs = opened.drain()
        answer = len(opened.manifest.segments) + 2  # embed, rotary and every segment, once more
        mine = {kind: [c for c in made if schedule in c.schedules and c.kind == kind] for kind in KINDS}
        for kinds, seen in ((("encode", "prefill"), runs[:-answer]), (("decode",), runs[-answer:])):
            expected = [(case.graph, case.shapes) for kind in kinds for case in mine[kind]]
            # rotary may run at the same shapes after each gate
            seen = [run for n, run in enumerate(seen) if run[0] != "rotary" or run not in seen[:n]]
            assert sorted(expected, key=repr) == sorted(seen, key=repr)


def test_cases_are_inside_their_profile_and_are_shared(opened: Opened) -> None:
    made = cases(opened.manifest, LIMITS)
    ranges = profiles(opened.manifest, LIMITS, usual_schedule(opened.manifest))
    for case in made:
        assert inside(case.shapes, ranges[case.graph][case.profile], opened.manifest.graph(case.graph)), case.name
    assert len({case.name for case in made}) == len(made)
    assert len({(c.graph, c.kind, tuple(c.shapes.items())) for c in made}) == len(made)
    assert {g.name for g in opened.manifest.graphs} == {case.graph for case in made}
    (first,) = [case for case in made if case.graph == "vision"]
    assert set(first.schedules) == set(opened.manifest.schedules)


@pytest.mark.parametrize("past", [0, 1])
@pytest.mark.parametrize("limits", [Limits(1, 1, 1), LIMITS, Limits(8, 100, 60)])
def test_ranges_are_ordered_and_consistent(opened: Opened, limits: Limits, past: int) -> None:
    manifest = opened.manifest
    for schedule in manifest.schedules:
        for name, made in profiles(manifest, limits, schedule, past).items():
            for profile in made:
                for r in profile.ranges.values():
                    assert all(a <= b <= c for a, b, c in zip(r.min, r.opt, r.max, strict=True)), (name, profile.name)
                if manifest.graph(name).kind == "segment":
                    for which in ("min", "opt", "max"):
                        _check_sum({n: getattr(r, which) for n, r in profile.ranges.items()})
            if manifest.graph(name).kind == "segment":
                layer = (manifest.graph(name).layers or (0, 0))[0]
                first, later = (p.ranges[f"past_key.{layer}"] for p in made)
                assert [p.name for p in made] == ["prefill", "decode"]
                assert (first.min[0], first.opt[0]) == (past, past)
                assert later.max[0] == first.max[0] == limits.capacity(manifest.layout) + past
                assert made[1].ranges["hidden_states"].max[1] == 1


def _check_sum(shapes: Shapes) -> None:
    past = next(shape[0] for name, shape in shapes.items() if name.startswith("past_"))
    assert shapes["attention_mask"][1] == past + shapes["hidden_states"][1]


def test_the_optimum_is_that_of_the_given_schedule(opened: Opened) -> None:
    manifest, limits = opened.manifest, Limits(text=40, new_tokens=10)
    for schedule in manifest.schedules:
        made = profiles(manifest, limits, schedule)
        for step in prefill(manifest, schedule, USUAL_TEXT):
            if step.graph.startswith("segment"):
                assert made[step.graph][0].ranges["hidden_states"].opt[1] == step.symbols["S"]
        for segment in manifest.segments:
            assert made[segment.name][1].ranges["attention_mask"].opt[1] == limits.capacity(manifest.layout) + 1


def test_usual_schedule(opened: Opened) -> None:
    manifest = opened.manifest
    full = {"full": manifest.schedules["full"]}
    assert usual_schedule(manifest, "full") == "full"
    assert usual_schedule(dataclasses.replace(manifest, schedules=full)) == "full"
    assert usual_schedule(dataclasses.replace(manifest, schedules=full | {"btp": manifest.schedules["btp"]})) == "btp"

    def rows(schedule: str) -> int:
        layers = {s.name: s.layers[1] - s.layers[0] for s in manifest.segments if s.layers}
        return sum(layers.get(s.graph, 0) * s.symbols.get("S", 0) for s in prefill(manifest, schedule, 0))

    pruned = sorted((rows(name), name) for name in manifest.schedules if name != "full")
    assert usual_schedule(manifest) == pruned[(len(pruned) - 1) // 2][1]
    with pytest.raises(UnknownName, match="Did you mean 'btp'"):
        usual_schedule(manifest, "btb")


def test_a_smaller_image_replaces_the_vision_graph(opened: Opened) -> None:
    manifest = opened.manifest
    small = dataclasses.replace(manifest.graph("vision"), name="small.0", kind="gate", layers=(0, 0))
    schedule = ScheduleRef("schedules/small.json", (GateRef(0, "small.0", 9, "downsample"),))
    made = dataclasses.replace(
        manifest, graphs=(*manifest.graphs, small), schedules=manifest.schedules | {"small": schedule}
    )
    steps = list(prefill(made, "small", 5))
    assert [step.graph for step in steps[:3]] == ["small.0", "projector", "embed"]
    assert steps[1].symbols == {"n": 9}
    assert all(step.symbols["S"] == manifest.layout.image_start + 9 + 5 for step in steps[3:])
    assert profiles(made, LIMITS, "full")["projector"][0].ranges["features"].min[1] == 9


def test_a_graph_without_schedule_is_refused(opened: Opened) -> None:
    stray = dataclasses.replace(opened.manifest.graph("projector"), name="stray")
    manifest = dataclasses.replace(opened.manifest, graphs=(*opened.manifest.graphs, stray))
    with pytest.raises(BadBundle, match="no schedule runs the graph 'stray'"):
        profiles(manifest, LIMITS, "full")


@pytest.mark.parametrize("wrong", [{"name": "../x"}, {"name": ""}, {"kind": "all"}, {"graph": ".x"}])
def test_invalid_cases_are_refused(wrong: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"name": "a.b", "graph": "a", "kind": "decode", "profile": 0, "shapes": {}}
    with pytest.raises(ValueError, match="case"):
        Case(**fields | {"schedules": ()} | wrong)
