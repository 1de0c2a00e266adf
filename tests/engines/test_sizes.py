# SPDX-License-Identifier: Apache-2.0
"""A manifest of two image sizes, two images, positions on three axes and a DeepStack plane, made by hand."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from secateur.bundle.contract import check_graphs
from secateur.bundle.graph_plan import largest, runs
from secateur.bundle.layout import Dimensions, Layout, ModelIdentity, View
from secateur.bundle.manifest import Bucket, GateRef, GraphSpec, Manifest, ScheduleRef, TensorSpec
from secateur.bundle.symbolic_shape import bind
from secateur.engines.cases import input_values
from secateur.engines.manifest import Limits
from secateur.engines.shapes import cases, limits, profiles
from secateur.errors import InputError
from secateur.profiling.chains import kinds

D, HEADS, WIDTH = 8, 2, 6
LIMITS = Limits(batch=3, text=20, new_tokens=5)


def f16(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "float16", shape)


def i64(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "int64", shape)


def layout(tokens: int, size: tuple[int, int], vision: str = "vision") -> Layout:
    """Two text rows, two images with a text row between them, and one after them."""
    views = (View(2, tokens, (2, tokens // 2)), View(3 + tokens, tokens, (2, tokens // 2)))
    rows = 4 + 2 * tokens
    axes = tuple(tuple(min(row, 6 + axis) for row in range(rows)) for axis in range(3))
    return Layout((1, 2, 3, 4), views, 2, axes, 9, size, vision)


SMALL, WIDE = layout(4, (28, 28)), layout(8, (28, 56), "vision-56x28")


def rows(s: str, *planes: str, out: str = "") -> tuple[TensorSpec, ...]:
    return (
        f16(f"hidden_states{out}", "B", s, D),
        i64(f"position_ids{out}", 3, "B", s),
        i64(f"attention_mask{out}", "B", s),
        *(f16(f"{plane}{out}", "B", s, D) for plane in planes),
    )


def of_a_size(where: Layout, suffix: str) -> tuple[list[GraphSpec], dict[str, ScheduleRef]]:
    """The vision graph, a gate in the encoder that keeps half, one in the decoder, and two that route."""
    one, every, half = where.image_tokens, where.vision_tokens, where.image_tokens // 2
    seen = (
        f16("features", "B", one, WIDTH),
        f16("deepstack.0", "B", one, D),
        TensorSpec("given.-2", "float32", ("B", one)),
    )
    pixels = TensorSpec("pixel_values", "float32", ("B", 3, *where.image_size))
    made = [GraphSpec(where.vision, "vision", f"onnx/{where.vision}.onnx", (pixels,), seen)]

    def gate(name: str, layer: int, given: Iterable[TensorSpec], left: Iterable[TensorSpec]) -> str:
        made.append(GraphSpec(f"{name}", "gate", f"onnx/{name}.onnx", tuple(given), tuple(left), (layer, layer)))
        return name

    left = (
        f16("features.out", "B", half, WIDTH),
        i64("vision_index.out", "B", half),
        f16("deepstack.0.out", "B", half, D),
    )
    front = gate(f"front{suffix}.0", 0, (seen[0], i64("vision_index", "B", one), *seen[1:]), left)
    pruned = f"S-{every - half - 1}"
    prune = gate(
        f"prune{suffix}.0",
        1,
        (*rows("S"), i64("vision_index", "B", every)),
        (*rows(pruned, out=".out"), i64("vision_index.out", "B", half + 1)),
    )
    full = (i64("full_position_ids", 3, "B", "S"), i64("full_attention_mask", "B", "S"))
    plane = (f16("full_deepstack.0", "B", "S", D),)
    first = gate(
        f"route{suffix}.0",
        0,
        (f16("hidden_states", "B", "S", D), *full, *plane),
        (*rows(pruned, "deepstack.0", out=".out"), i64("vision_index.out", "B", half + 1)),
    )
    second = gate(
        f"route{suffix}.1",
        1,
        (
            f16("full_states", "B", "S", D),
            *plane,
            f16("hidden_states", "B", pruned, D),
            i64("vision_index", "B", half + 1),
            *full,
        ),
        (f16("full_states.out", "B", "S", D), *rows(pruned, out=".out"), i64("vision_index.out", "B", half + 1)),
    )
    uneven = (half, 1)
    schedules = {
        "full": ScheduleRef("full.json", ()),
        "front": ScheduleRef("front.json", (GateRef(0, front, 2 * half, "vision", (half, half)),)),
        "prune": ScheduleRef("prune.json", (GateRef(1, prune, half + 1, views=uneven),)),
        "route": ScheduleRef(
            "route.json",
            (GateRef(0, first, half + 1, "route", uneven), GateRef(1, second, half + 1, "route", uneven)),
        ),
    }
    return made, schedules


def segment(number: int, last: bool) -> GraphSpec:
    planes = ("deepstack.0",) if number == 0 else ()
    given = [f16("hidden_states", "B", "S", D), i64("position_ids", 3, "B", "S"), i64("attention_mask", "B", "P+S")]
    given += [f16(plane, "B", "S", D) for plane in planes] + [i64("last_index", "B"), i64("question_position", 1)]
    given += [f16(f"past_{part}.{number}", "P", "B", HEADS, 4) for part in ("key", "value")]
    left = [f16("logits", "B", 99) if last else f16("hidden_states.out", "B", "S", D)]
    left += [f16(f"new_{part}.{number}", "S", "B", HEADS, 4) for part in ("key", "value")]
    name = f"segment_{number}"
    return GraphSpec(name, "segment", f"onnx/{name}.onnx", tuple(given), tuple(left), (number, number + 1))


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    small, schedules = of_a_size(SMALL, "")
    wide, others = of_a_size(WIDE, "@56x28")
    shared = [
        GraphSpec(
            "projector",
            "projector",
            "p.onnx",
            (f16("features", "B", "n", WIDTH),),
            (f16("vision_tokens", "B", "n", D),),
        ),
        GraphSpec("embed", "embed", "e.onnx", (i64("input_ids", "B", "T"),), (f16("hidden_states", "B", "T", D),)),
    ]
    made = Manifest(
        ModelIdentity("qwen3_vl", 2, 8, "sha256:0", "28x28", 2),
        "x",
        "tensorrt",
        "fp16",
        20,
        Dimensions(2, D, HEADS, HEADS, 4, 16, 99, 64, WIDTH, planes=1),
        SMALL,
        (*small, *shared, segment(0, False), segment(1, True), *wide),
        schedules,
        {},
        {},
        (Bucket(WIDE, others),),
    )
    check_graphs(made)
    return made


def test_runs(manifest: Manifest) -> None:
    names = ["full", "front", "prune", "route"]
    assert list(runs(manifest)) == [f"{name}@{size}" for size in ("28x28", "56x28") for name in names]
    assert runs(manifest, ["prune"])["prune@56x28"].manifest.layout == WIDE
    assert list(runs(manifest.buckets[1])) == names
    assert largest(manifest) == WIDE
    assert kinds(manifest)["front@56x28.0"] == "gate"


def test_profiles_have_room_for_every_size(manifest: Manifest) -> None:
    made = profiles(manifest, LIMITS, "prune")
    assert set(made) == {graph.name for graph in manifest.graphs}
    capacity = WIDE.rows + 20 + 5
    prefill, decode = made["segment_0"]
    assert prefill.ranges["position_ids"].opt == (3, 1, SMALL.rows + 20)
    assert prefill.ranges["position_ids"].max == (3, 3, WIDE.rows + 20)
    assert prefill.ranges["deepstack.0"].max == (3, WIDE.rows + 20, D) and "question_position" not in prefill.ranges
    assert prefill.ranges["past_key.0"].max == decode.ranges["past_key.0"].max == (capacity, 3, HEADS, 4)
    assert made["segment_1"][0].ranges["hidden_states"].opt == (1, 4 + 3 + 20, D)
    for where, name in ((SMALL, "vision"), (WIDE, "vision-56x28")):
        images = made[name][0].ranges["pixel_values"]
        assert images.min == images.opt == (2, 3, *where.image_size) and images.max == (6, 3, *where.image_size)
    assert made["front@56x28.0"][0].ranges["vision_index"].max == (6, 8)
    projector = made["projector"][0].ranges["features"]
    assert (projector.min, projector.max) == ((2, 2, WIDTH), (6, 8, WIDTH))
    assert made["route@56x28.0"][0].ranges["full_deepstack.0"].max == (3, WIDE.rows + 20, D)


def test_cases_of_every_size(manifest: Manifest) -> None:
    made = {case.name: case for case in cases(manifest, LIMITS)}
    assert {case.graph for case in made.values()} == {graph.name for graph in manifest.graphs}
    assert made["vision.encode"].shapes == {"pixel_values": (2, 3, 28, 28)}
    assert made["vision.encode"].schedules == ("full@28x28", "front@28x28", "prune@28x28", "route@28x28")
    assert made["vision-56x28.encode"].schedules[0] == "full@56x28"
    assert made["projector.encode-n4"].schedules == ("full@28x28", "prune@28x28", "route@28x28", "front@56x28")
    ranges = profiles(manifest, LIMITS, "full")
    for case in made.values():
        bind(manifest.graph(case.graph).inputs, case.shapes)
        for name, r in ranges[case.graph][case.profile].ranges.items():
            assert all(a <= b <= c for a, b, c in zip(r.min, case.shapes[name], r.max, strict=True)), (case.name, name)


def test_inputs_of_every_case(manifest: Manifest) -> None:
    """Positions on three axes, the position of the question, and indices of each view of a gate."""
    for case in cases(manifest, LIMITS):
        values = input_values(manifest, case)
        for name, value in values.items():
            assert value.shape == case.shapes[name]
        for name in ("position_ids", "full_position_ids"):
            if name in values:
                assert values[name].shape[0] == 3 and (np.diff(values[name], axis=2) > 0).all()
        if "question_position" in values:
            assert values["question_position"].tolist() == [9]
        if "vision_index" in values:
            where = WIDE if "@" in case.graph else SMALL
            tokens, index = where.image_tokens, values["vision_index"]
            assert (np.diff(index, axis=1) > 0).all()
            if case.graph.startswith("route"):
                assert (index < tokens).sum(axis=1).tolist() == [tokens // 2] and index.max() < 2 * tokens
            else:
                every = tokens if case.kind == "encode" else 2 * tokens
                assert (index == np.arange(every)).all()


def test_limits_go_by_the_largest_size(manifest: Manifest) -> None:
    assert limits(manifest).capacity(WIDE) <= 64
    room = 64 - WIDE.rows
    assert limits(manifest, 1, room - 5, 5) == Limits(1, room - 5, 5)
    with pytest.raises(InputError, match=f"{WIDE.rows} rows up to the image's end, --max-text {room - 4} "):
        limits(manifest, 1, room - 4, 5)
