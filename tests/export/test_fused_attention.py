# SPDX-License-Identifier: Apache-2.0
"""The check for fused attention against TensorRT's compiler, on attention alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.engines.compiler import compile_graph
from secateur.engines.manifest import Profile, Range
from secateur.export.bundle import Exported
from secateur.export.fused_attention import attention_warnings, unfused

F32, DTYPES = TensorProto.FLOAT, {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
FUSED = [f"{dtype} {form}" for dtype in ("fp16", "bf16") for form in ("plain", "softmax", "mask", "scores", "values")]
UNFUSED = ["fp32 plain", "fp16 products", "bf16 products", "fp16 tanh", "bf16 tanh", "fp32 tanh"]


def attention(case: str) -> onnx.ModelProto:
    """Attention of 4 heads in a dtype, of which a part is computed in fp32; or with tanh of the scores."""
    dtype, form = case.split()
    kind, nodes = DTYPES[dtype], list[onnx.NodeProto]()

    def then(operator: str, *names: str, **settings: Any) -> str:
        nodes.append(helper.make_node(operator, names, [f"y{len(nodes)}"], **settings))
        return f"y{len(nodes) - 1}"

    def cast(name: str, to: int) -> str:
        return then("Cast", name, to=to)

    q, k, v, mask = "q", "k", "v", "mask"
    if form in ("scores", "products"):
        q, k = cast(q, F32), cast(k, F32)
    if form == "products":
        v, mask = cast(v, F32), cast(mask, F32)
    scores = then("MatMul", q, then("Transpose", k, perm=[0, 1, 3, 2]))
    if form == "scores":
        scores = cast(scores, kind)
    if form == "tanh":
        scores = then("Mul", then("Tanh", then("Div", scores, "cap")), "cap")
    if form == "mask":
        scores, mask = cast(scores, F32), cast(mask, F32)
    scores = then("Add", scores, mask)
    if form == "softmax":
        scores = cast(scores, F32)
    weights = then("Softmax", scores, axis=-1)
    if form in ("softmax", "mask"):
        weights = cast(weights, kind)
    if form == "values":
        weights, v = cast(weights, F32), cast(v, F32)
    out = then("MatMul", weights, v)
    if form in ("values", "products"):
        out = cast(out, kind)
    shapes: dict[str, list[str | int | None]]
    shapes = {"q": ["B", 4, "S", 64], "k": ["B", 4, "K", 64], "v": ["B", 4, "K", 64], "mask": ["B", 1, "S", "K"]}
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    result = helper.make_tensor_value_info(out, kind, ["B", 4, "S", 64])
    cap = numpy_helper.from_array(np.array(50, np.float32), "cap")
    if form == "tanh" and dtype != "fp32":
        cap = helper.make_tensor("cap", kind, [], [50.0])
    graph = helper.make_graph(nodes, "attention", inputs, [result], [cap] if form == "tanh" else [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("case", [*FUSED, *UNFUSED])
def test_the_check_agrees_with_the_compiler(case: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = attention(case)
    onnx.save(model, tmp_path / "a.onnx")
    sizes = {"q": (1, 600, 1000), "k": (1, 600, 2000), "v": (1, 600, 2000)}
    ranges = {name: Range(*((1, 4, rows, 64) for rows in each)) for name, each in sizes.items()}
    ranges["mask"] = Range((1, 1, 1, 1), (1, 1, 600, 600), (1, 1, 1000, 2000))
    kernels = compile_graph(tmp_path / "a.onnx", [Profile("prefill", ranges)]).kernels[0]
    fused = any(kernel.attention for kernel in kernels)
    assert fused == (case in FUSED) == (not unfused(model))


def test_reasons() -> None:
    assert unfused(attention("fp32 plain")) == "it is computed in fp32; export with --dtype fp16 or bf16"
    assert "through Tanh before the softmax" in unfused(attention("fp16 tanh"))


def test_the_warning_of_a_bundle(trt_bundle: tuple[Path, Exported], tmp_path: Path) -> None:
    manifest = trt_bundle[1].manifest
    assert not trt_bundle[1].warnings and not attention_warnings(trt_bundle[0], manifest)
    for number, segment in enumerate(manifest.segments):
        path = tmp_path / segment.file
        path.parent.mkdir(exist_ok=True)
        onnx.save(attention("fp32 plain" if number < 2 else "fp16 plain"), path)
    (warning,) = attention_warnings(tmp_path, manifest)
    assert warning == (
        f"TensorRT will not fuse the attention of 2 of {len(manifest.segments)} segments: it is computed in fp32; "
        "export with --dtype fp16 or bf16"
    )
    assert not attention_warnings(tmp_path, replace(manifest, target="cpu"))


def test_a_softmax_without_a_product_is_not_attention() -> None:
    x, y = (helper.make_tensor_value_info(name, F32, [4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Softmax", ["x"], ["y"])], "g", [x], [y])
    assert not unfused(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
