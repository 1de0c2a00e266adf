# SPDX-License-Identifier: Apache-2.0
"""The range check names the first graph, tensor and row, as rows of the unpruned prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from secateur.bundle.layout import Dimensions, Layout, ModelIdentity, View
from secateur.bundle.manifest import GateRef, GraphSpec, Manifest, ScheduleRef, TensorSpec
from secateur.errors import SecateurError
from secateur.runtime.backends import base
from secateur.runtime.backends.base import register_dtype
from secateur.runtime.backends.ort import HostBuffer
from secateur.runtime.range_check import RangeCheck, is_float, largest

HALF = "float16"
LAYOUT = Layout((1, 2, 3), (View(2, 4, (2, 2)), View(7, 2, (1, 2))))  # text 0 1, tokens 0 to 3, text 6, tokens 4 5
KEPT = np.array([[1, 3, 4], [0, 1, 5]])


def spec(name: str, kind: str, outputs: dict[str, tuple[int | str, ...]], layer: int | None = None) -> GraphSpec:
    kinds = {name: "int64" if name.startswith("vision_index") else HALF for name in outputs}
    kinds |= dict.fromkeys({"logits"} & outputs.keys(), "float32")
    tensors = tuple(TensorSpec(name, kinds[name], shape) for name, shape in outputs.items())
    layers = None if layer is None else (layer, layer + (kind == "segment"))
    return GraphSpec(name, kind, f"onnx/{name}.onnx", (), tensors, layers)


def segment(number: int, last: bool = False) -> GraphSpec:
    first: dict[str, tuple[int | str, ...]] = {"logits": ("B", 9)} if last else {"hidden_states.out": ("B", "S", 4)}
    more: dict[str, tuple[int | str, ...]] = {f"new_key.{number}": ("S", "B", 1, 4), "query": ("B", 1, 4)}
    return spec(f"segment_{number}", "segment", first | more, number)


GRAPHS = (
    spec("vision", "vision", {"features": ("B", 6, 4), "received.-2": ("B", 6)}),
    spec("v.0", "gate", {"features.out": ("B", 3, 4), "vision_index.out": ("B", 3)}, 0),
    spec("projector", "projector", {"vision_tokens": ("B", "n", 4)}),
    spec("embed", "embed", {"hidden_states": ("B", "T", 4)}),
    segment(0),
    spec("p.0", "gate", {"hidden_states.out": ("B", "S-3", 4), "vision_index.out": ("B", 3)}, 1),
    spec("r.0", "gate", {"full_states.out": ("B", "S", 4), "vision_index.out": ("B", 3)}, 1),
    segment(1, last=True),
)
MANIFEST = Manifest(
    model=ModelIdentity("made", 2, 6, "sha256:0"),
    source="made",
    target="cuda",
    dtype="fp16",
    opset=23,
    dimensions=Dimensions(2, 4, 1, 1, 4, 8, 9, 64, 4),
    layout=LAYOUT,
    graphs=GRAPHS,
    schedules={"p": ScheduleRef("p.json", (GateRef(1, "p.0", 3),))},
    files={},
    versions={},
)


class Planted(base.Backend):
    """Outputs ones, the kept tokens for a gate, and values that the test planted."""

    masked_past = 1

    def __init__(self, kept: NDArray[np.int64] = KEPT) -> None:
        self.kept = kept
        self.planted: dict[tuple[str, str], tuple[tuple[int | slice, ...], float]] = {}

    def load(self, graph: GraphSpec) -> None:
        pass

    def allocate(self, shape: tuple[int, ...], dtype: Any) -> base.Buffer:
        return HostBuffer(np.zeros(shape, dtype))

    def run(self, graph: str, inputs: Mapping[str, base.Buffer], outputs: Mapping[str, base.Buffer]) -> None:
        for name, buffer in outputs.items():
            array = self.kept.copy() if name == "vision_index.out" else np.ones(buffer.shape, buffer.dtype)
            if (graph, name) in self.planted:
                place, value = self.planted[graph, name]
                array[place] = value
            buffer.write(array)

    def close(self) -> None:
        pass


def walk(guard: RangeCheck, gate: str = "p.0", past: int = 1, tail: int = 3) -> None:
    """Run a prompt of two samples through all graphs: 9 rows of the layout, then `tail` rows."""
    rows = LAYOUT.rows + tail if past == 1 else tail
    sizes = {"vision": 6, "v.0": 3, "projector": 3 if gate == "v.0" else 6}
    names = ["vision", *(["v.0"] if gate == "v.0" else []), "projector"] if past == 1 else []
    rows -= 3 * (gate == "v.0" and past == 1)
    for name in [*names, "embed", "segment_0", *([gate] if gate != "v.0" and past == 1 else []), "segment_1"]:
        if name == gate != "v.0":
            rows -= 3 * (gate == "p.0")
        elif name == "segment_1" and gate == "r.0" and past == 1:
            rows -= 3
        outputs = {}
        for tensor in MANIFEST.graph(name).outputs:
            size = {"B": 2, "S": rows, "S-3": rows, "T": rows, "n": sizes.get(name, 0)}
            shape = tuple(size[d] if isinstance(d, str) else d for d in tensor.shape)
            outputs[tensor.name] = guard.allocate(shape, tensor.dtype)
        inputs = {"past_key.0": guard.allocate((past, 2, 1, 4), HALF)} if name.startswith("segment") else {}
        guard.run(name, inputs, outputs)


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("graph", "tensor", "place", "gate", "sample", "row"),
    [
        ("vision", "features", (1, 4, 2), "p.0", 1, "vision token 4"),
        ("v.0", "features.out", (0, 2, 0), "v.0", 0, "vision token 4"),
        ("projector", "vision_tokens", (1, 2, 0), "v.0", 1, "vision token 5"),
        ("embed", "hidden_states", (0, 6, 0), "p.0", 0, "text row 6"),
        ("segment_0", "hidden_states.out", (0, 1, 0), "p.0", 0, "text row 1"),
        ("segment_0", "hidden_states.out", (0, 5, 0), "p.0", 0, "vision token 3"),
        ("segment_0", "new_key.0", (8, 1, 0, 3), "p.0", 1, "vision token 5"),
        ("segment_0", "new_key.0", (10, 0, 0, 3), "p.0", 0, "text row 10"),
        ("segment_0", "hidden_states.out", (0, 2, 0), "v.0", 0, "vision token 1"),
        ("p.0", "hidden_states.out", (0, 3, 0), "p.0", 0, "vision token 3"),
        ("p.0", "hidden_states.out", (1, 5, 0), "p.0", 1, "vision token 5"),
        ("r.0", "full_states.out", (0, 3, 0), "r.0", 0, "vision token 1"),
        ("segment_1", "new_key.1", (4, 0, 0, 0), "r.0", 0, "text row 6"),
        ("segment_1", "new_key.1", (5, 0, 0, 0), "p.0", 0, "vision token 4"),
        ("segment_1", "new_key.1", (6, 1, 0, 0), "p.0", 1, "text row 9"),
        ("segment_1", "query", (1, 0, 0), "p.0", 1, ""),
        ("segment_1", "logits", (0, 7), "p.0", 0, ""),
    ],
)
@pytest.mark.parametrize("value", [INF, NAN])
def test_the_first_bad_value_is_named(
    graph: str, tensor: str, place: tuple[int, ...], gate: str, sample: int, row: str, value: float
) -> None:
    backend = Planted()
    backend.planted[graph, tensor] = place, value
    guard = RangeCheck(backend, MANIFEST)
    with pytest.raises(SecateurError) as raised:
        walk(guard, gate)
    found = guard.found
    assert found is not None and raised.value.exit_code == 1
    assert (found.graph, found.tensor, found.sample, found.row, found.largest) == (graph, tensor, sample, row, 1.0)
    assert str(raised.value).startswith(f"graph '{graph}' gives {value:g} in '{tensor}'") and "\n" not in str(
        raised.value
    )


TWO = Layout((1, 2, 3), (View(2, 16, (4, 4)), View(19, 16, (4, 4))), images=2)  # text 0 1 18, the question from 35 on
SEVERAL = replace(
    MANIFEST,
    layout=TWO,
    graphs=(
        spec("vision", "vision", {"features": ("B", 16, 4), "deepstack.0": ("B", 16, 4)}),
        spec(
            "v.0",
            "gate",
            {"features.out": ("B", 2, 4), "deepstack.0.out": ("B", 2, 4), "vision_index.out": ("B", 2)},
            0,
        ),
        *GRAPHS[2:5],
        segment(1, last=True),
    ),
    schedules={"v": ScheduleRef("v.json", (GateRef(0, "v.0", 4, "vision", (2, 2)),))},
)


@pytest.mark.parametrize(
    ("graph", "tensor", "place", "sample", "row"),
    [
        ("vision", "features", (3, 2, 0), 1, "vision token 18"),
        ("vision", "deepstack.0", (1, 3, 0), 0, "vision token 19"),
        ("v.0", "features.out", (2, 1, 0), 1, "vision token 1"),
        ("v.0", "deepstack.0.out", (3, 0, 0), 1, "vision token 18"),
        ("projector", "vision_tokens", (1, 1, 0), 0, "vision token 18"),
        ("embed", "hidden_states", (1, 5, 0), 1, "vision token 18"),
        ("embed", "hidden_states", (0, 7, 0), 0, "text row 35"),
        ("segment_0", "hidden_states.out", (0, 5, 0), 0, "vision token 16"),
        ("segment_0", "hidden_states.out", (1, 4, 0), 1, "text row 18"),
        ("segment_1", "new_key.1", (3, 1, 0, 0), 1, "vision token 1"),
    ],
)
def test_several_images_and_a_gate_in_the_encoder(
    graph: str, tensor: str, place: tuple[int, ...], sample: int, row: str
) -> None:
    """Two samples of two images, each pruned separately; tokens are counted over the images of a sample."""
    backend = Planted(np.array([[1, 3], [0, 2], [0, 1], [2, 3]]))
    backend.planted[graph, tensor] = place, INF
    guard = RangeCheck(backend, SEVERAL)
    with pytest.raises(SecateurError):
        for each in SEVERAL.graphs:
            images = 4 if each.name in ("vision", "v.0", "projector") else 2
            size = {"B": images, "S": 10, "T": 10, "n": 2}
            shapes = {x.name: tuple(size[d] if isinstance(d, str) else d for d in x.shape) for x in each.outputs}
            guard.run(each.name, {}, {x.name: guard.allocate(shapes[x.name], x.dtype) for x in each.outputs})
    assert guard.found is not None and (guard.found.graph, guard.found.tensor) == (graph, tensor)
    assert (guard.found.sample, guard.found.row) == (sample, row)


def test_the_first_of_several_rows_is_named() -> None:
    backend = Planted()
    backend.planted["segment_0", "hidden_states.out"] = (slice(None), slice(4, None), 1), INF
    guard = RangeCheck(backend, MANIFEST)
    with pytest.raises(SecateurError, match="at vision token 2 "):
        walk(guard)


def test_rows_of_a_follow_up_question_are_named_as_new_rows() -> None:
    backend = Planted()
    guard = RangeCheck(backend, MANIFEST)
    walk(guard)
    backend.planted["segment_1", "new_key.1"] = (1, 0, 0, 0), INF
    with pytest.raises(SecateurError, match="at new row 1 of 3"):
        walk(guard, past=9)


@pytest.mark.parametrize(("value", "share", "stops"), [(40000, 0.5, True), (30000, 0.5, False), (40000, 1.0, False)])
def test_values_near_the_end_of_the_range(value: float, share: float, stops: bool) -> None:
    backend = Planted()
    backend.planted["segment_0", "hidden_states.out"] = (0, 0, 0), -value
    guard = RangeCheck(backend, MANIFEST, share)
    if stops:
        with pytest.raises(
            SecateurError, match=r"gives -40000 .* the safe limit of float16 is 32752\); export with --dtype"
        ):
            walk(guard)
    else:
        walk(guard)
        assert guard.found is None and guard.largest["segment_0"] == pytest.approx(value, rel=1e-3)
    assert guard.largest["vision"] == 1.0


def test_limits_of_the_inner_backend_are_passed_on() -> None:
    guard = RangeCheck(Planted(), MANIFEST)
    assert (guard.masked_past, guard.most_rows, guard.fixed_shapes) == (1, None, False)


def test_bf16_is_registered_with_numpy() -> None:
    register_dtype("bf16")
    dtype = np.dtype("bfloat16")
    edge: NDArray[Any] = np.array([largest(dtype)], dtype)
    assert is_float(dtype) and is_float(np.dtype(HALF)) and not is_float(np.dtype("int64"))
    assert np.isfinite(edge.astype(np.float32)).all() and edge.astype(np.float64)[0] == largest(dtype)
    assert largest(np.dtype(HALF)) == 65504
