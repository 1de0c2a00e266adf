# SPDX-License-Identifier: Apache-2.0
"""Half precision: gates compute in fp32, nothing overflows at 1e4, and the comparison with fp32 tells the truth."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from secateur.bundle.manifest import GraphSpec, TensorSpec
from secateur.bundle.schedule import Schedule
from secateur.bundle.symbolic_shape import bind, resolve, resolve_shapes
from secateur.checkpoints.streaming import stream
from secateur.cli import main
from secateur.errors import BadBundle, SecateurError
from secateur.evaluation import precision
from secateur.evaluation.precision import OVERLAP, Answers, Difference, Overlap, Precision, compare, overlap
from secateur.export.bundle import Exported, ExportPlan, export
from secateur.export.graphs import Graph, build_graphs, sized_model
from secateur.export.targets import Target, target
from secateur.families.base import Family
from secateur.runtime import Bundle, Pipeline
from secateur.runtime.backends import ort
from secateur.runtime.backends.base import Backend
from secateur.runtime.chain import Buffers
from secateur.runtime.range_check import RangeCheck
from secateur.selection.budget import BudgetRequest
from tests.conftest import COMPRESSION, METHODS, OPTIONS, VARIANTS, method, schedules, tiny_family

LARGE = 1e4
BATCH = 2
MOVES = {  # operators that copy values or change their type, and compute nothing
    *("_to_copy", "to", "float", "copy_", "clone", "contiguous", "alias", "detach", "cat", "slice", "select", "narrow"),
    *("gather", "index", "index_put", "index_put_", "index_select", "split", "split_with_sizes", "expand", "view"),
    *("reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze", "_unsafe_view"),
}


ONNX_MOVES = {
    *("Cast", "Concat", "Expand", "Gather", "GatherElements", "GatherND", "Identity", "Reshape", "ScatterND", "Shape"),
    *("Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
}


class NoHalfArithmetic(TorchDispatchMode):
    """Refuses every operator that computes with nothing but fp16 values, or gives fp16 values that it computed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        read, given = (
            {x.dtype for x in tree_leaves(values) if isinstance(x, Tensor) and x.is_floating_point()}
            for values in ((args, kwargs), made)
        )
        assert name in MOVES or (read != {torch.float16} and torch.float16 not in given), f"{name} computes in fp16"
        return made


@dataclasses.dataclass
class Pair:
    """The graphs of one schedule in fp16, and the same weights in fp32."""

    half: list[Graph]
    single: list[Graph]

    def gates(self) -> list[tuple[Graph, Graph]]:
        """In both precisions; of the downsampled encoder none, for it is no gate on activations."""
        both = zip(self.half, self.single, strict=True)
        gates = [(a, b) for a, b in both if a.spec.kind == "gate" and a.spec.inputs[0].name != "pixel_values"]
        assert gates or any(
            graph.spec.kind == "gate" and graph.spec.inputs[0].name == "pixel_values" for graph in self.half
        )
        return gates


@pytest.fixture(scope="module")
def halved(tiny: Family) -> tuple[Family, Family]:
    """The tiny model in fp16, and in fp32 with the same rounded weights."""
    half = copy.deepcopy(tiny)
    half.to(torch.float16)
    single = copy.deepcopy(half)
    single.to(torch.float32)
    return half, single


@pytest.fixture(scope="module", params=[*METHODS, *VARIANTS])
def pair(request: pytest.FixtureRequest, tiny: Family, halved: tuple[Family, Family]) -> Pair:
    name, options = OPTIONS.get(request.param, (request.param, {}))
    made = schedules(tiny, {request.param: method(name, **options)}, BudgetRequest(compression=COMPRESSION))
    half, single = halved
    return Pair(graphs(half, made, target("tensorrt")), graphs(single, made, target("tensorrt", "fp32")))


def graphs(family: Family, made: list[Schedule], kind: Target) -> list[Graph]:
    return build_graphs([sized_model(family, family.layout, made)], kind)


def values(graph: Graph, shape: str, seed: int) -> tuple[Tensor, ...]:
    """Inputs in fp32 that fp16 holds exactly: activations up to 1e4, all of them or one channel, and a real prompt."""
    torch.manual_seed(seed)
    symbols = {"B": BATCH, "S": graph.rows, "P": 3, "T": 5, "n": 5}
    return tuple(_value(x, [resolve(d, symbols) for d in x.shape], shape) for x in graph.spec.inputs)


def _value(spec: TensorSpec, size: list[int], shape: str) -> Tensor:
    if spec.name.endswith("mask"):
        return torch.ones(size, dtype=torch.int64)
    if spec.name == "last_index":
        return torch.full(size, 4)
    if spec.dtype == "int64":  # positions, and the tokens that are left
        return torch.arange(size[1]).repeat(size[0], 1)
    made = torch.randn(size)
    if spec.name.startswith("rotary"):
        return made.cos().half().float()
    if spec.dtype == "float32":  # scores of the encoder
        return made.abs()
    if shape == "channel":
        made[..., -1] *= LARGE
    if spec.name.startswith("past"):
        return made.half().float()
    return (made * (LARGE / made.abs().amax().clamp_min(1e-6))).half().float()


def run(graph: Graph, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    dtypes = [getattr(torch, x.dtype) for x in graph.spec.inputs]
    with torch.inference_mode():
        found = graph.module(*(x.to(dtype) for x, dtype in zip(inputs, dtypes, strict=True)))
    found = found if isinstance(found, tuple) else (found,)
    return {spec.name: x for spec, x in zip(graph.spec.outputs, found, strict=True)}


@pytest.mark.parametrize("shape", ["rows", "channel"])
def test_gates_in_fp16_keep_what_fp32_keeps_at_1e4(pair: Pair, shape: str) -> None:
    for half, single in pair.gates():
        inputs = values(half, shape, 0)
        found, expected = run(half, inputs), run(single, inputs)
        assert torch.equal(found["vision_index.out"], expected["vision_index.out"]), half.spec.name
        for name, tensor in found.items():
            assert torch.isfinite(tensor).all(), f"{half.spec.name}: {name}"
            torch.testing.assert_close(tensor.float(), expected[name].float(), rtol=1e-3, atol=1e-3)


def test_gates_compute_nothing_in_fp16(pair: Pair) -> None:
    for half, _ in pair.gates():
        with NoHalfArithmetic():  # type: ignore[no-untyped-call]
            run(half, values(half, "rows", 1))


def test_the_guard_sees_arithmetic_in_fp16() -> None:
    half = torch.ones(2, dtype=torch.float16)
    for compute in (lambda: half * 2, lambda: half.argmax()):
        with pytest.raises(AssertionError, match="computes"), NoHalfArithmetic():  # type: ignore[no-untyped-call]
            compute()  # type: ignore[no-untyped-call]
    with NoHalfArithmetic():  # type: ignore[no-untyped-call]
        (half[:1].float() * 2).to(torch.float16)


@pytest.mark.parametrize("shape", ["rows", "channel"])
@pytest.mark.parametrize("name", ["tensorrt", "cuda"])
def test_segments_in_fp16_stay_finite_at_1e4(
    tiny: Family, halved: tuple[Family, Family], name: str, shape: str
) -> None:
    made = schedules(tiny, {"btp": method("btp"), "v2drop": method("v2drop")}, BudgetRequest(compression=COMPRESSION))
    half, single = (graphs(f, made, target(name, dtype)) for f, dtype in zip(halved, ("fp16", "fp32"), strict=True))
    segments = [(a, b) for a, b in zip(half, single, strict=True) if a.spec.kind == "segment"]
    assert len(segments) > 2
    for a, b in segments:
        inputs = values(a, shape, 2)
        found, expected = run(a, inputs), run(b, inputs)
        for tensor, reference in zip(found.values(), expected.values(), strict=True):
            assert torch.isfinite(tensor).all(), a.spec.name
            assert (tensor.float() - reference).abs().max() <= 1e-2 * reference.abs().max(), a.spec.name


@pytest.mark.parametrize("shape", ["rows", "channel"])
def test_onnx_graphs_stay_finite_at_1e4(trt_bundle: tuple[Path, Exported], shape: str) -> None:
    """The files themselves, with ONNX Runtime's kernels: a cast that the exporter lost would show here."""
    bundle = Bundle.load(trt_bundle[0])
    backend = ort.Backend(bundle)
    specs = [spec for spec in bundle.manifest.graphs if spec.kind in ("segment", "gate")]
    assert len(specs) >= 8
    for spec in specs:
        backend.load(spec)
        inputs, outputs = buffers(backend, spec, shape, 3)
        backend.run(spec.name, inputs, outputs)
        for name, buffer in outputs.items():
            assert np.isfinite(buffer.numpy()).all(), f"{spec.name}: {name}"


def test_gate_files_compute_nothing_in_fp16(trt_bundle: tuple[Path, Exported]) -> None:
    gates = sorted((trt_bundle[0] / "onnx" / "gates").glob("*.onnx"))
    assert gates
    for path in gates:
        graph = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False)).graph
        types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
        types |= {constant.name: constant.data_type for constant in graph.initializer}
        for node in graph.node:
            touched = {types[name] for name in (*node.input, *node.output) if name}
            assert node.op_type in ONNX_MOVES or onnx.TensorProto.FLOAT16 not in touched, f"{path.name}: {node}"


def buffers(backend: Backend, spec: GraphSpec, shape: str, seed: int) -> tuple[Buffers, Buffers]:
    graph = Graph(spec, torch.nn.Identity(), rows=50)
    inputs: Buffers = {}
    for x, value in zip(spec.inputs, values(graph, shape, seed), strict=True):
        inputs[x.name] = backend.allocate(tuple(value.shape), x.dtype)
        inputs[x.name].write(value.numpy().astype(x.dtype))
    sizes = resolve_shapes(spec.outputs, bind(spec.inputs, {name: b.shape for name, b in inputs.items()}))
    return inputs, {x.name: backend.allocate(sizes[x.name], x.dtype) for x in spec.outputs}


def in_fp32(folder: Path, tiny: Family) -> Precision:
    return compare(Bundle.load(folder), 3, family=tiny)


def test_a_bundle_in_fp16_is_near_its_checkpoint(trt_bundle: tuple[Path, Exported], tiny: Family) -> None:
    folder, exported = trt_bundle
    found = compare(Bundle.load(folder), 48, family=tiny)  # a near tie in an early pick of btp changes one question
    assert [s.schedule for s in found.schedules] == list(exported.manifest.schedules)
    assert (found.dtype, found.questions) == ("fp16", 48)
    for schedule in found.schedules:
        assert schedule.answers is None and schedule.overlap >= 0.98
        assert len(schedule.gates) == len(exported.manifest.schedules[schedule.schedule].gates)
    full = found.schedules[0]
    assert 0 < full.relative_error < 3e-2 and full.same_token == full.overlap == 1
    assert {a.graph for a in found.activations} == {g.name for g in exported.manifest.graphs}
    assert all(a.headroom == pytest.approx(65504 / a.largest) for a in found.activations)


def test_a_bundle_in_bf16_is_compared_with_a_model_that_stays_in_its_files(tiny: Family, tmp_path: Path) -> None:
    tiny.model.save_pretrained(tmp_path / "checkpoint")
    model = stream(type(tiny).architecture, tmp_path / "checkpoint")
    assert model is not None
    streamed = type(tiny)(model, tiny.processor, tiny.source)
    made = schedules(tiny, {"fastv": method("fastv")}, BudgetRequest(compression=COMPRESSION))
    half = copy.deepcopy(tiny)
    half.to(torch.bfloat16)
    export([ExportPlan(half, tuple(made))], target("cuda", "bf16"), tmp_path / "bundle", verify=False)
    bundle = Bundle.load(tmp_path / "bundle")
    found = compare(bundle, 2, family=streamed)
    assert found.dtype == "bf16" and 0 < found.schedules[0].relative_error < 1e-1
    assert found == compare(bundle, 2, family=tiny)
    assert streamed.dtype == tiny.dtype == torch.float32, "both have their weights back"


def test_every_image_size_and_prompts_of_several_images_are_compared(tmp_path: Path) -> None:
    family = tiny_family("qwen2_5_vl")
    sizes = [family.at(size, images=2) for size in (family.bucket, (32, 56))]
    chosen = {"fastv": method("fastv")}
    made = [ExportPlan(each, tuple(schedules(each, chosen, BudgetRequest(compression=COMPRESSION)))) for each in sizes]
    exported = export(made, target("cpu"), tmp_path / "bundle", verify=False)
    found = compare(Bundle.load(tmp_path / "bundle"), 2, family=family)
    assert not found.failures and {a.graph for a in found.activations} == {g.name for g in exported.manifest.graphs}
    kept = {s.schedule: [gate.keep for gate in s.gates] for s in found.schedules}
    layouts = [each.layout for each in sizes]
    gates = [bucket.schedules["fastv"].gates[0].keep for bucket in exported.manifest.buckets]
    assert kept == {
        f"{name}@{layout.size}": [keep] if name == "fastv" else []
        for layout, keep in zip(layouts, gates, strict=True)
        for name in ("full", "fastv")
    }
    assert gates[0] != gates[1]


def test_another_model_is_refused(trt_bundle: tuple[Path, Exported], tiny: Family) -> None:
    other = type(tiny).tiny(seed=1)
    with pytest.raises(BadBundle, match="not the one this bundle was exported from"):
        in_fp32(trt_bundle[0], other)


def test_inf_names_the_graph(trt_bundle: tuple[Path, Exported]) -> None:
    bundle = Bundle.load(trt_bundle[0])
    spec = bundle.manifest.segments[1]
    backend = RangeCheck(ort.Backend(bundle), bundle.manifest, share=1.0)
    backend.load(spec)
    inputs, outputs = buffers(backend, spec, "rows", 4)
    backend.run(spec.name, inputs, outputs)
    assert LARGE <= backend.largest["segment_1"] < 2 * LARGE
    inputs["hidden_states"].numpy()[0, 0, 0] = np.inf
    with pytest.raises(SecateurError, match=r"graph 'segment_1' gives (inf|nan) in 'hidden_states.out'.*--dtype fp32"):
        backend.run(spec.name, inputs, outputs)


def test_a_segment_whose_weights_are_too_large_is_named(trt_bundle: tuple[Path, Exported], tmp_path: Path) -> None:
    """Also name the row in a real run: rows in fp16 overflow after weights that fit into fp16."""
    folder = tmp_path / "bundle"
    shutil.copytree(trt_bundle[0], folder)
    bundle = Bundle.load(folder)
    spec, image = bundle.manifest.segments[1], np.full((8, 8, 3), 100, np.uint8)
    assert spec.weights
    for weight in spec.weights:
        path = folder / weight.file
        values = np.memmap(path, np.float16, "r+", weight.offset, weight.shape)
        values[:] = values * (30000 / np.abs(values).max().astype(np.float32))
        values.flush()
        del values
    bundle = Bundle.load(folder, verify=False)  # the first would notice that its files have changed
    with Pipeline(bundle, RangeCheck(ort.Backend(Bundle.load(trt_bundle[0])), bundle.manifest)) as vlm:
        vlm.ask(image, "w1 w2 w3", "full", max_new_tokens=2)
    guard = RangeCheck(ort.Backend(bundle), bundle.manifest)
    with Pipeline(bundle, guard) as vlm, pytest.raises(SecateurError, match=f"graph '{spec.name}' gives"):
        vlm.ask(image, "w1 w2 w3", "full", max_new_tokens=2)
    assert guard.found is not None and guard.found.row and guard.largest[bundle.manifest.segments[0].name] < 1e4


@given(st.integers(1, 40).flatmap(lambda k: st.tuples(*[st.sets(st.integers(0, 60), min_size=k, max_size=k)] * 2)))
def test_overlap_is_the_share_of_common_tokens(sets: tuple[set[int], set[int]]) -> None:
    found, expected = (np.isin(np.arange(61), list(s)) for s in sets)
    assert overlap(sorted(sets[0]), sorted(sets[1])) == pytest.approx((found & expected).sum() / expected.sum())


def test_no_tokens_overlap_wholly() -> None:
    assert overlap((), ()) == 1.0


def made(share: float, dtype: str = "fp16") -> Precision:
    gates = (Overlap(2, 8, share, 0.5),)
    schedule = Difference("btp-22", 0.1, 0.01, 1.0, share, gates, Answers(0.9, 0.92, 0.98))
    return Precision(dtype, 5, (schedule,), ())


@pytest.mark.parametrize(("share", "code"), [(OVERLAP["fp16"], 0), (OVERLAP["fp16"] - 0.001, 1)])
def test_inspect_fails_below_the_bound_and_shows_the_table(
    trt_bundle: tuple[Path, Exported],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    share: float,
    code: int,
) -> None:
    monkeypatch.setattr(precision, "compare", lambda *_: made(share))
    assert main(["inspect", str(trt_bundle[0]), "--check", "--json"]) == code
    out, err = capsys.readouterr()
    assert json.loads(out)["precision"]["schedules"][0]["answers"]["accuracy_fp32"] == 0.92
    assert ("schedule 'btp-22' keeps 0.9890" in err) == bool(code)
    assert main(["inspect", str(trt_bundle[0]), "--check"]) == code
    assert f"{share:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", OVERLAP)
def test_each_dtype_has_its_bound(dtype: str) -> None:
    assert not made(OVERLAP[dtype], dtype).failures
    assert f"the bound is {OVERLAP[dtype]} " in made(OVERLAP[dtype] - 0.001, dtype).failures[0]


def test_inspect_without_the_checkpoint_is_one_line(
    trt_bundle: tuple[Path, Exported], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(trt_bundle[0]), "--check"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "exported from the folder 'random', which is not here" in err
