# SPDX-License-Identifier: Apache-2.0
"""TensorRT for RTX on small graphs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.engines.compiler import compile_graph
from secateur.engines.library import CAPABILITIES, capabilities
from secateur.engines.manifest import Profile, Range
from secateur.errors import BackendMissing, BuildFailed, InputError

F16 = TensorProto.FLOAT16
PROFILES = (
    Profile("prefill", {"x": Range((1, 1, 512), (1, 600, 512), (1, 2000, 512))}),
    Profile("decode", {"x": Range((1, 1, 512), (1, 1, 512), (1, 1, 512))}),
)


def rtx() -> object:
    return pytest.importorskip("tensorrt_rtx")


def product(path: Path, weight: list[int], transpose: bool, operator: str = "MatMul", unused: bool = False) -> Path:
    """A product of the rows `x` and the input `w`."""
    inputs = [
        helper.make_tensor_value_info("x", F16, ["B", "S", 512]),
        helper.make_tensor_value_info("w", F16, weight),
        *([helper.make_tensor_value_info("unused", F16, [1])] if unused else []),
    ]
    nodes = [helper.make_node("Transpose", ["w"], ["t"], perm=[0, 2, 1])] if transpose else []
    nodes.append(helper.make_node(operator, ["x", "t" if transpose else "w"], ["y"]))
    outputs = [helper.make_tensor_value_info("y", F16, ["B", "S", 256])]
    graph = helper.make_graph(nodes, "product", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_a_weight_as_input(tmp_path: Path) -> None:
    rtx()
    path = product(tmp_path / "a.onnx", [1, 256, 512], transpose=True)
    built = compile_graph(path, PROFILES, ("86", "120"), weights=["w"])
    prefill, decode = built.kernels
    assert built.plan and not built.warnings and len(built.scratch) == 2
    assert len(prefill) == len(decode) == 1 and prefill[0].product and decode[0].product
    assert not prefill[0].copy and prefill[0].matrix and prefill[0].bytes is None


def test_a_weight_that_is_transposed_in_every_step(tmp_path: Path) -> None:
    """The same graph with a dynamic batch."""
    rtx()
    path = product(tmp_path / "a.onnx", [1, 256, 512], transpose=True)
    batches = [Profile("all", {"x": Range((1, 1, 512), (1, 1, 512), (2, 1, 512))})]
    kernels = compile_graph(path, batches, weights=["w"]).kernels[0]
    assert [kernel.copy for kernel in kernels] == [True, False]


def test_the_layout_that_is_written_out_in_every_step(tmp_path: Path) -> None:
    rtx()
    path = product(tmp_path / "a.onnx", [1, 512, 256], transpose=False)
    decode = compile_graph(path, PROFILES, weights=["w"]).kernels[1]
    assert any(kernel.copy for kernel in decode)


def test_bytes_at_fixed_shapes(tmp_path: Path) -> None:
    rtx()
    path = product(tmp_path / "a.onnx", [1, 256, 512], transpose=True)
    built = compile_graph(path, [Profile("all", {"x": Range((1, 7, 512), (1, 7, 512), (1, 7, 512))})], weights=["w"])
    (kernel,) = built.kernels[0]
    assert kernel.bytes is not None
    least = 2 * (7 * 512 + 256 * 512 + 7 * 256)
    assert built.weights == 0  # the weight is an input
    assert built.inputs == {"x": 2 * 7 * 512, "w": 2 * 256 * 512} and built.outputs == {"y": 2 * 7 * 256}
    assert kernel.label == "ReshMulSum" or kernel.label == kernel.kind == "gemm"
    assert least <= kernel.bytes <= least + 64  # and the factors alpha and beta of a library product


def test_warnings_and_errors(tmp_path: Path) -> None:
    rtx()
    path = product(tmp_path / "a.onnx", [1, 256, 512], transpose=True, unused=True)
    assert any("unused" in warning for warning in compile_graph(path, PROFILES).warnings)
    with pytest.raises(BuildFailed, match="could not build it: .*x"):
        compile_graph(path, [Profile("all", {})])
    path = product(tmp_path / "b.onnx", [1, 256, 512], transpose=True, operator="NoSuchOperator")
    with pytest.raises(BuildFailed, match="cannot parse it: .*NoSuchOperator"):
        compile_graph(path, PROFILES)


def test_compute_capabilities() -> None:
    assert capabilities("86, 8.9,SM120,sm86") == ("86", "89", "120")
    with pytest.raises(InputError, match="SM '87'; choose from 75, 80, 86, 89, 120, 121; 86 is nearest to Orin"):
        capabilities("86,87")
    with pytest.raises(InputError, match="SM ''"):
        capabilities("")


def test_the_capabilities_are_those_of_the_library() -> None:
    trt = rtx()
    known = {name[2:] for name in dir(trt.ComputeCapability) if name.startswith("SM")}  # type: ignore[attr-defined]
    assert known == set(CAPABILITIES)


def test_a_missing_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendMissing, match=r"pip install 'secateur\[rtx\]'"):
        compile_graph(tmp_path / "a.onnx", PROFILES)


def test_rows_of_a_table(tmp_path: Path) -> None:
    rtx()
    table = numpy_helper.from_array(np.ones((1000, 512), np.float16), "table")
    index = helper.make_tensor_value_info("x", TensorProto.INT64, ["T"])
    rows = helper.make_tensor_value_info("y", F16, ["T", 512])
    graph = helper.make_graph([helper.make_node("Gather", ["table", "x"], ["y"])], "gather", [index], [rows], [table])
    path = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    built = compile_graph(path, [Profile("all", {"x": Range((7,), (7,), (7,))})])
    assert [kernel.bytes for kernel in built.kernels[0]] == [7 * 8 + 7 * 512 * 2 * 2]
    assert built.weights == 1000 * 512 * 2 and not built.kernels[0][0].copy


def test_int4_in_blocks_is_read_by_the_product(tmp_path: Path) -> None:
    rtx()
    integers = helper.make_tensor("q", TensorProto.INT4, [512, 256], np.arange(512 * 256) % 15 - 7)
    scales = numpy_helper.from_array(np.full((4, 256), 0.1, np.float16), "scales")
    rows = helper.make_tensor_value_info("x", F16, ["B", "S", 512])
    found = helper.make_tensor_value_info("y", F16, ["B", "S", 256])
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scales"], ["w"], axis=0, block_size=128),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "int4", [rows], [found], [integers, scales])
    path = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    built = compile_graph(path, PROFILES)
    assert built.weights == 512 * 256 // 2 + 4 * 256 * 2
    for (kernel,) in built.kernels:
        assert kernel.product and not kernel.copy
