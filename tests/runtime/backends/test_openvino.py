# SPDX-License-Identifier: Apache-2.0
"""Backend openvino: answers of ort, tensors in place, ties, shared heads, devices and refusals."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from secateur.bundle.manifest import GraphSpec, TensorSpec, WeightSpec
from secateur.errors import BadBundle, InputError, SecateurError
from secateur.runtime import Bundle, Pipeline
from secateur.runtime.backends import ort
from secateur.runtime.backends.base import BF16, register_dtype
from secateur.runtime.backends.openvino import Backend
from tests.runtime.backends.buffers import segment

OPTIONS: dict[str, Any] = {"max_new_tokens": 8}
DTYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
}
DTYPES[BF16] = TensorProto.BFLOAT16


@pytest.fixture(autouse=True, scope="module")
def library() -> Any:
    return pytest.importorskip("openvino", reason="openvino is not installed")


@pytest.fixture(scope="module")
def bundle(bundle_path: Path) -> Bundle:
    return Bundle.load(bundle_path, verify=False)


@pytest.fixture(scope="module")
def backend(bundle: Bundle) -> Backend:
    made = Backend(bundle, threads=1)
    for graph in bundle.manifest.graphs:
        made.load(graph)
    return made


def one_graph(
    root: Path,
    nodes: list[onnx.NodeProto],
    spec: GraphSpec,
    constants: list[onnx.TensorProto] | None = None,
    heads: tuple[int, int] = (1, 1),
) -> tuple[Bundle, GraphSpec]:
    """Write a graph; return what a backend needs of a bundle with it, and the graph."""
    inputs, outputs = (
        [helper.make_tensor_value_info(each.name, DTYPES[each.dtype], list(each.shape)) for each in side]
        for side in (spec.all_inputs, spec.outputs)
    )
    made = helper.make_graph(nodes, spec.name, inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=10), root / spec.file)
    dimensions = SimpleNamespace(heads=heads[0], kv_heads=heads[1])
    manifest = SimpleNamespace(dimensions=dimensions, files={spec.file: ""}, dtype="fp32")
    return cast(Bundle, SimpleNamespace(path=root.joinpath, manifest=manifest)), spec


def answers(backend: Any, graph: GraphSpec, **arrays: Any) -> dict[str, Any]:
    """Run a graph of which the outputs have the shapes in `arrays` under their names."""
    backend.load(graph)
    inputs = {}
    for spec in graph.inputs:
        inputs[spec.name] = backend.allocate(arrays[spec.name].shape, arrays[spec.name].dtype)
        inputs[spec.name].write(arrays[spec.name])
    outputs = {spec.name: backend.allocate(arrays[spec.name], spec.dtype) for spec in graph.outputs}
    backend.run(graph.name, inputs, outputs)
    return {name: buffer.numpy() for name, buffer in outputs.items()}


@pytest.mark.parametrize("schedule", ["full", "prune", "early", "none"])
def test_answers_equal_those_of_ort(schedule: str, bundle: Bundle, vlm: Pipeline, picture: Any) -> None:
    with Pipeline(bundle, Backend(bundle, threads=1)) as pipeline:
        for seed, question in enumerate(("what color is the seven ?", "red ?")):
            got, want = (p.ask(picture(seed), question, schedule, **OPTIONS) for p in (pipeline, vlm))
            assert got.tokens == want.tokens and got.kept == want.kept
            np.testing.assert_allclose(got.first_logits, want.first_logits, rtol=1e-4, atol=1e-4)
        batches = [p.ask([picture(0), picture(1)], ["red ?", "three"], schedule, **OPTIONS) for p in (pipeline, vlm)]
        assert [a.tokens for a in batches[0]] == [a.tokens for a in batches[1]]
        chats = [p.open(picture(2), schedule) for p in (pipeline, vlm)]
        for question in ("red ?", "where is the seven ?"):
            got, want = (chat.ask(question, **OPTIONS) for chat in chats)
            assert got.tokens == want.tokens


@pytest.mark.parametrize("past", [0, 1, 5])
def test_rows_are_written_into_a_view(backend: Backend, past: int) -> None:
    inputs, outputs = segment(backend, past=past)
    backend.run("segment_0", inputs, outputs)
    cache = backend.allocate((past + 7, 2, 2, 4), np.float32)
    cache.numpy()[:] = 5
    cache.view(slice(0, past)).write(inputs["past_key.0"])
    placed = outputs | {"new_key.0": cache.view(slice(past, past + 3))}
    backend.run("segment_0", inputs | {"past_key.0": cache.view(slice(0, past))}, placed)
    assert np.array_equal(cache.numpy()[past : past + 3], outputs["new_key.0"].numpy())
    assert np.array_equal(cache.numpy()[:past], inputs["past_key.0"].numpy())
    assert (cache.numpy()[past + 3 :] == 5).all()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=5))
def test_tensors_are_not_mixed_up_between_runs(backend: Backend, shapes: list[tuple[int, int, int]]) -> None:
    for past, rows, batch in shapes:
        inputs, outputs = segment(backend, rows, past, batch)
        backend.run("segment_0", inputs, outputs)
        assert not np.array_equal(outputs["hidden_states.out"].numpy(), inputs["hidden_states"].numpy())
        again = {name: backend.allocate(o.shape, o.dtype) for name, o in outputs.items()}
        backend.run("segment_0", inputs, again)
        assert all(np.array_equal(o.numpy(), again[name].numpy()) for name, o in outputs.items())


def test_only_changed_tensors_are_set(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, made = backend._requests["segment_0"], backend._tensor
    counted: list[tuple[int, ...]] = []

    def tensor(array: Any) -> Any:
        counted.append(array.shape)
        return made(array)

    monkeypatch.setattr(backend, "_tensor", tensor)
    inputs, outputs = segment(backend)
    for expected in (len(opened.ports), 0):
        counted.clear()
        backend.run("segment_0", inputs, outputs)
        assert len(counted) == expected
    before = outputs["query"].numpy().copy()
    inputs["last_index"].write(np.zeros(2, np.int64))
    backend.run("segment_0", inputs, outputs)
    assert not counted and not np.array_equal(outputs["query"].numpy(), before)
    backend.run("segment_0", inputs, outputs | {"query": backend.allocate((2, 4, 4), np.float32)})
    assert counted == [(2, 4, 4)]


def test_wrong_buffers(backend: Backend, bundle: Bundle) -> None:
    inputs, outputs = segment(backend)
    with pytest.raises(InputError, match="'P\\+S' must be 5"):
        backend.run("segment_0", inputs | {"attention_mask": backend.allocate((2, 4), np.int64)}, outputs)
    with pytest.raises(SecateurError, match="'vision' is not loaded"):
        Backend(bundle).run("vision", {}, {})


def test_a_closed_backend(bundle: Bundle) -> None:
    backend = Backend(bundle, threads=1)
    backend.load(bundle.manifest.graphs[0])
    backend.close()
    backend.close()
    with pytest.raises(SecateurError, match="not loaded, or the backend was closed"):
        backend.run(bundle.manifest.graphs[0].name, {}, {})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))), st.integers(1, 4), st.booleans())
def test_ties_go_to_the_lower_index(tmp_path: Path, sizes: tuple[int, int], values: int, largest: bool) -> None:
    count, kept = sizes
    node = helper.make_node("TopK", ["x", "k"], ["v", "i"], axis=-1, largest=int(largest))
    constants = [helper.make_tensor("k", TensorProto.INT64, [1], [kept])]
    outputs = (TensorSpec("v", "float32", ("B", kept)), TensorSpec("i", "int64", ("B", kept)))
    spec = GraphSpec("top", "gate", "top.onnx", (TensorSpec("x", "float32", ("B", count)),), outputs)
    bundle, spec = one_graph(tmp_path, [node], spec, constants)
    x = np.random.default_rng(count).integers(0, values, (3, count)).astype(np.float32)
    found = answers(Backend(bundle, threads=1), spec, x=x, v=(3, kept), i=(3, kept))
    expected = np.argsort(-x if largest else x, axis=1, kind="stable")[:, :kept]
    assert np.array_equal(found["i"], expected)
    assert np.array_equal(found["v"], np.take_along_axis(x, expected, 1))


@pytest.mark.parametrize("rows", [1, 5])
def test_query_heads_share_keys_and_values(tmp_path: Path, rows: int) -> None:
    """As in a segment: the number of query heads is not in the graph, and the next product needs it."""
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node("Reshape", ["x", "apart"], ["r"]),
        helper.make_node("Transpose", ["r"], ["q"], perm=[0, 2, 1, 3]),
        helper.make_node("Attention", ["q", "k", "v", "mask"], ["a"], scale=0.5),
        helper.make_node("Transpose", ["a"], ["t"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["t", "flat"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    constants = [
        helper.make_tensor("apart", TensorProto.INT64, [4], [0, 0, -1, 8]),
        helper.make_tensor("flat", TensorProto.INT64, [3], [0, 0, -1]),
        onnx.numpy_helper.from_array(rng.normal(size=(32, 6)).astype(np.float32), "w"),
    ]
    inputs = (
        TensorSpec("x", "float32", ("B", "S", 32)),
        TensorSpec("k", "float32", ("B", 2, "T", 8)),
        TensorSpec("v", "float32", ("B", 2, "T", 8)),
        TensorSpec("mask", "float32", ("B", 1, "S", "T")),
    )
    spec = GraphSpec("turn", "segment", "turn.onnx", inputs, (TensorSpec("y", "float32", ("B", "S", 6)),))
    bundle, spec = one_graph(tmp_path, nodes, spec, constants, heads=(4, 2))
    sizes = {"x": (2, rows, 32), "k": (2, 2, 7, 8), "v": (2, 2, 7, 8), "mask": (2, 1, rows, 7)}
    given = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    found, expected = (
        answers(made, spec, **given, y=(2, rows, 6))["y"]
        for made in (Backend(bundle, threads=1), ort.Backend(bundle, threads=1, mapped=False))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", BF16])
def test_weights_are_mapped_from_their_file(tmp_path: Path, dtype: str) -> None:
    """A weight is an input of the graph, at an offset of a file; so are buffers in a dtype that numpy does not have."""
    register_dtype("bf16")
    kinds = [DTYPES[dtype], TensorProto.FLOAT]
    nodes = [helper.make_node("Cast", [name], [f"{name}.wide"], to=kinds[1]) for name in ("x", "w")]
    nodes += [
        helper.make_node("Add", ["x.wide", "w.wide"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["y"], to=kinds[0]),
    ]
    weight = np.array([[1.5, -2, 3]], dtype)
    (tmp_path / "w.data").write_bytes(bytes(64) + weight.tobytes())
    spec = GraphSpec(
        "add",
        "gate",
        "add.onnx",
        (TensorSpec("x", dtype, ("B", 3)),),
        (TensorSpec("y", dtype, ("B", 3)),),
        weights=(WeightSpec("w", dtype, (1, 3), "w.data", 64),),
    )
    bundle, spec = one_graph(tmp_path, nodes, spec)
    x = np.array([[1, 2, 4], [0, -1, 8]], dtype)
    found = answers(Backend(bundle, threads=1), spec, x=x, y=(2, 3))["y"]
    assert found.dtype == np.dtype(dtype) and np.array_equal(found, x + weight)
    assert (tmp_path / "w.data").read_bytes() == bytes(64) + weight.tobytes()


def test_rows_before_integer_weights_are_not_rounded(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    packed = rng.integers(0, 256, (8, 2, 16), dtype=np.uint8)
    scales = rng.normal(size=16).astype(np.float32)
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=64, N=8, bits=4, block_size=32
    )
    constants = [onnx.numpy_helper.from_array(packed, "w"), onnx.numpy_helper.from_array(scales, "s")]
    inputs, outputs = (TensorSpec("x", "float32", ("B", "S", 64)),), (TensorSpec("y", "float32", ("B", "S", 8)),)
    bundle, spec = one_graph(tmp_path, [node], GraphSpec("four", "segment", "four.onnx", inputs, outputs), constants)
    x = rng.normal(size=(2, 3, 64)).astype(np.float32)
    found = answers(Backend(bundle, threads=1), spec, x=x, y=(2, 3, 8))["y"]
    four = np.stack([packed & 15, packed >> 4], -1).reshape(8, 2, 32).astype(np.float32) - 8
    weight = (four * scales.reshape(8, 2, 1)).reshape(8, 64)
    np.testing.assert_allclose(found, x @ weight.T, rtol=1e-4, atol=1e-4)


def test_files_that_are_refused(tmp_path: Path) -> None:
    inputs, outputs = (TensorSpec("x", "float32", ("B", 3)),), (TensorSpec("y", "float32", ("B", 3)),)
    spec = GraphSpec("g", "gate", "g.onnx", inputs, outputs)
    bundle, _ = one_graph(tmp_path, [helper.make_node("Sharpen", ["x"], ["y"], domain="com.microsoft")], spec)
    with pytest.raises(
        BadBundle, match=r"OpenVINO cannot open .*g\.onnx \(.*Sharpen\); .* or use --backend ort$"
    ) as problem:
        Backend(bundle).load(spec)
    assert "\n" not in str(problem.value)
    one_graph(tmp_path, [helper.make_node("Neg", ["x"], ["y"])], spec)
    for wrong, message in (
        (TensorSpec("z", "float32", ("B", 3)), "differ in the tensor 'y'"),
        (TensorSpec("y", "float16", ("B", 3)), "'y' is f32 .*, the manifest says float16"),
        (TensorSpec("y", "float32", ("B", 4)), r"'y' is f32 .*, the manifest says float32 \['B', 4\]"),
    ):
        with pytest.raises(BadBundle, match=message):
            Backend(bundle).load(GraphSpec("g", "gate", "g.onnx", inputs, (wrong,)))
    (tmp_path / "g.onnx").write_bytes((tmp_path / "g.onnx").read_bytes()[:-9])
    with pytest.raises(BadBundle, match="OpenVINO cannot open"):
        Backend(bundle).load(spec)


@pytest.mark.parametrize("device", ["npu", "cuda", "CPU", ""])
def test_an_unavailable_device_is_refused(bundle_path: Path, device: str, library: Any) -> None:
    if device.upper() in {name.partition(".")[0] for name in library.Core().available_devices} - {"CPU"}:
        pytest.skip(f"this machine has the device {device}")
    with pytest.raises(InputError, match=f"'openvino' finds no device '{device}' here; choose one of: .*cpu"):
        Pipeline.load(bundle_path, backend="openvino", device=device, verify=False)


def test_devices_are_numbered(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, library: Any) -> None:
    capable = {"CPU": ["FP32"], "GPU": ["FP32", "FP16"], "GPU.1": ["FP32", "BF16"]}
    core = SimpleNamespace(
        available_devices=["CPU", "GPU.0", "GPU.1"],
        get_property=lambda device, name: capable[device] if name == "OPTIMIZATION_CAPABILITIES" else f"the {device}",
    )
    monkeypatch.setattr(library, "Core", lambda: core)
    assert Backend(bundle, device="gpu").describe()["device"] == "the GPU"
    assert Backend(bundle, device="gpu.1", bf16=True).describe()["device"] == "the GPU.1"
    with pytest.raises(InputError, match=r"no device 'gpu.2' here; choose one of: cpu, gpu.0, gpu.1"):
        Backend(bundle, device="gpu.2")
    with pytest.raises(InputError, match="the device 'cpu' has no bf16; leave bf16 out"):
        Backend(bundle, bf16=True)


def test_bf16(bundle: Bundle, vlm: Pipeline, picture: Any, library: Any) -> None:
    if "BF16" not in library.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16")
    want = vlm.ask(picture(0), "red ?", "full").first_logits
    with Pipeline(bundle, Backend(bundle, threads=1, bf16=True)) as pipeline:
        got = pipeline.ask(picture(0), "red ?", "full").first_logits
    assert 0 < np.abs(got - want).max() < 0.1 * np.abs(want).max()


def test_the_cpu_has_no_description(backend: Backend) -> None:
    assert backend.describe() == {}


def test_changed_files_are_found(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[bool] = []
    monkeypatch.setattr(Bundle, "check_unchanged", lambda self: called.append(True))
    Backend(bundle).check_files()
    assert called
