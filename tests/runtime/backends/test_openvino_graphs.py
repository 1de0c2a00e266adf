# SPDX-License-Identifier: Apache-2.0
"""Graphs that OpenVINO must run as ONNX defines them: ties, shared heads, weights of every kind, and refused files."""

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
from secateur.errors import BadBundle
from secateur.runtime import Bundle
from secateur.runtime.backends import ort
from secateur.runtime.backends.base import BF16, register_dtype
from secateur.runtime.backends.openvino import Backend

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
        helper.make_node("Shape", ["x"], ["rows"], end=2),
        helper.make_node("Concat", ["rows", "heads"], ["apart"], axis=0),
        helper.make_node("Concat", ["rows", "all"], ["flat"], axis=0),
        helper.make_node("Reshape", ["x", "apart"], ["r"], allowzero=1),
        helper.make_node("Transpose", ["r"], ["q"], perm=[0, 2, 1, 3]),
        helper.make_node("Attention", ["q", "k", "v", "mask"], ["a"], scale=0.5),
        helper.make_node("Transpose", ["a"], ["t"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["t", "flat"], ["f"], allowzero=1),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    constants = [
        helper.make_tensor("heads", TensorProto.INT64, [2], [-1, 8]),
        helper.make_tensor("all", TensorProto.INT64, [1], [-1]),
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
