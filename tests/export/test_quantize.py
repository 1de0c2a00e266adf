# SPDX-License-Identifier: Apache-2.0
"""Quantized weights: close to the weights, the same in ONNX Runtime as in numpy, and only in decoder layers."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import parser
from torch import nn

from secateur.bundle.manifest import DEQUANTIZED, OPERATOR, Quantization
from secateur.bundle.reader import Bundle
from secateur.checkpoints import streaming
from secateur.engines.version import Version, floor
from secateur.errors import InputError
from secateur.export.bundle import Exported
from secateur.export.lint import lint, lint_bundle
from secateur.export.quantize import dequantize, quantization, quantize, rounded
from secateur.export.quantized_graph import quantize_graph, weights_as_stored
from secateur.export.targets import target

OPERATORS = [
    Quantization(name, block, symmetric)
    for name in ("int8", "int4")
    for block in (16, 32, 128)
    for symmetric in (True, False)
]
DEQUANTIZING = [Quantization("int4", block, True, DEQUANTIZED) for block in (64, 128)]
EVERY = [*OPERATORS, *DEQUANTIZING]
LAYER = """({f}[B,128] x) => ({f}[B,16] y, float[B,8] logits)
{{ a = MatMul(x, w) b = MatMul(x, w) y = Add(a, b) c = MatMul(y, head) logits = Cast<to = 1>(c) }}"""


def random(inputs: int, outputs: int, dtype: str = "float32", seed: int = 0) -> NDArray[Any]:
    made: NDArray[Any] = np.random.default_rng(seed).normal(size=(inputs, outputs)).astype(dtype)
    return made


def layer(dtype: str = "float32") -> onnx.ModelProto:
    """Return a graph with a weight that two nodes read, and a head."""
    text = LAYER.format(f={"float32": "float", "float16": "float16"}[dtype])
    made = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23]> g {text}')
    for name, weight in (("w", random(128, 16, dtype)), ("head", random(16, 8, dtype))):
        made.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    for i, node in enumerate(made.graph.node):
        node.name = f"node_{i}"
    return made


def quantized(model: onnx.ModelProto, how: Quantization) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    made = onnx_ir.from_proto(model)
    names = quantize_graph(made, how)
    return onnx_ir.to_proto(made), names


def run(model: onnx.ModelProto | Path, **inputs: NDArray[Any]) -> list[NDArray[Any]]:
    given = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(given, providers=["CPUExecutionProvider"])
    found: list[NDArray[Any]] = session.run(None, inputs)
    return found


def steps(weight: NDArray[Any], how: Quantization) -> NDArray[np.float64]:
    """Return the expected quantization step of each value, computed from the values of its block."""
    step = np.zeros(weight.shape)
    for column in range(weight.shape[1]):
        for start in range(0, len(weight), how.block_size):
            block = weight[start : start + how.block_size, column].astype(np.float64)
            low, high = min(block.min(), 0.0), max(block.max(), 0.0)
            if not how.symmetric:
                size = (high - low) / (2**how.bits - 1)
            else:
                size = max(-low, high) / (2 ** (how.bits - 1) - (how.operator == DEQUANTIZED))
            step[start : start + how.block_size, column] = size
    return step


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("how", EVERY, ids=str)
def test_every_weight_is_within_half_a_step(how: Quantization, dtype: str) -> None:
    """Half a step, but a whole step at one end of ONNX Runtime's symmetric range, which has one integer fewer there."""
    weight = random(256, 6, dtype)
    step = steps(weight, how)
    error = np.abs(dequantize(quantize(weight, how), how, 256) - weight.astype(np.float64)) / step
    slack = 0.001 if dtype == "float32" else 2**how.bits * 2**-11  # the scales themselves are rounded
    whole = how.symmetric and how.operator == OPERATOR
    assert error.max() <= (1.0 if whole else 0.5) + slack
    assert error.max() > 0.4
    if whole:
        inner = np.abs(weight) < 0.9 * step * (2 ** (how.bits - 1) - 1)
        assert error[inner].max() <= 0.5 + slack


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("how", EVERY, ids=str)
def test_onnx_runtime_multiplies_with_the_same_weights(how: Quantization, dtype: str) -> None:
    model, names = quantized(layer(dtype), how)
    onnx.checker.check_model(model)
    assert names == ("w",)
    assert {node.op_type for node in model.graph.node} >= {how.operator, "MatMul", "Add"}
    assert "w" not in {tensor.name for tensor in model.graph.initializer}
    rows = random(3, 128, dtype, seed=1)
    found, logits = run(model, x=rows)
    exact = dequantize(quantize(random(128, 16, dtype), how), how, 128)
    expected = 2 * (rows.astype(np.float64) @ exact)
    tolerance = 1e-5 if dtype == "float32" else 5e-3
    assert found.dtype == dtype
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
    head = random(16, 8, dtype).astype(np.float64)  # exact: it makes the logits
    assert np.abs(logits - found.astype(np.float64) @ head).max() <= tolerance * np.abs(logits).max()


@pytest.mark.parametrize("how", OPERATORS[:4], ids=str)
def test_a_last_block_may_be_shorter(how: Quantization) -> None:
    weight = random(40, 4)
    assert np.abs(rounded(weight, how) - weight).max() <= 1.01 * steps(weight, how).max()


def test_accuracy_level_4_rounds_the_rows_too() -> None:
    how = Quantization("int4", 32, accuracy_level=4)
    rows = random(3, 128, seed=1)
    (exact, _), (found, _) = (run(quantized(layer(), x)[0], x=rows) for x in (Quantization("int4", 32), how))
    error = np.abs(found - exact).max() / np.abs(exact).max()
    assert 1e-4 < error < 2e-2


def test_bytes_depend_on_the_weights_alone() -> None:
    for how in EVERY:
        one, other = (quantized(layer(), how)[0].SerializeToString(deterministic=True) for _ in range(2))
        assert one == other


def test_weights_in_a_file_are_read_from_there(tmp_path: Path) -> None:
    how = Quantization("int4", 32)
    onnx_ir.save(onnx_ir.from_proto(layer()), tmp_path / "a.onnx", external_data="a.data", size_threshold_bytes=0)
    model = onnx_ir.load(tmp_path / "a.onnx")
    assert isinstance(model.graph.initializers["w"].const_value, onnx_ir.ExternalTensor)
    quantize_graph(model, how)
    onnx_ir.save(model, tmp_path / "b.onnx", external_data="b.data", size_threshold_bytes=0)
    rows = random(3, 128, seed=1)
    for found, expected in zip(run(tmp_path / "b.onnx", x=rows), run(quantized(layer(), how)[0], x=rows), strict=True):
        assert np.array_equal(found, expected)
    assert (tmp_path / "b.data").stat().st_size < (tmp_path / "a.data").stat().st_size / 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("how", [Quantization("int4", 32), Quantization("int8", 32, True)], ids=str)
def test_torch_runs_with_the_quantized_weights_within_the_block(how: Quantization, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear, norm = nn.Linear(64, 8).to(dtype), nn.LayerNorm(8).to(dtype)
    block = nn.Sequential(linear, norm)
    exact = linear.weight.detach()  # as in a gate
    before = {name: value.clone() for name, value in block.state_dict().items()}
    with weights_as_stored([block], how):
        plain = before["0.weight"].float().T.numpy().astype(str(dtype).removeprefix("torch."))
        stored = torch.from_numpy(rounded(plain, how).astype(np.float32)).T.to(dtype)
        assert torch.equal(linear.weight, stored) and not torch.equal(linear.weight, before["0.weight"])
        assert torch.equal(exact, before["0.weight"])
        assert torch.equal(norm.weight, before["1.weight"])
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())


class Entry:
    """Fake of a weight in a file, with `read` only."""

    def __init__(self, values: torch.Tensor) -> None:
        self.read = values.clone


def test_streamed_weights_are_rounded_too() -> None:
    torch.manual_seed(0)
    values, rows = torch.randn(8, 64), torch.randn(3, 64)
    for wrap in (False, True):  # read by a hook of the layer, or of the block around it
        linear = nn.Linear(64, 8, bias=False)
        linear.weight = nn.Parameter(torch.empty(8, 64, device="meta"), requires_grad=False)
        linear.weight.stored = streaming.Stored(Entry(values), torch.float32)  # type: ignore[attr-defined, arg-type]
        block = nn.Sequential(linear)
        streaming._hook(block if wrap else linear)
        with weights_as_stored([block], Quantization("int4")):
            found = block(rows)
            assert linear.weight.is_meta
        expected = rows @ torch.from_numpy(rounded(values.T.contiguous().numpy(), Quantization("int4")))
        assert torch.allclose(found, expected, atol=1e-5)
        assert torch.equal(block(rows), rows @ values.T) and linear.weight.is_meta


def test_bf16_weights_get_bf16_scales() -> None:
    for how in (Quantization("int8"), Quantization("int4", 64, True, DEQUANTIZED)):
        weight = random(128, 4, "bfloat16")
        stored = quantize(weight, how)
        assert stored.scales.dtype == ml_dtypes.bfloat16
        assert np.abs(dequantize(stored, how, 128) - weight.astype(np.float32)).max() < 0.3


def test_a_scale_is_never_0_in_fp16() -> None:
    """The smallest number of fp16 divided by 7 rounds to 0, which cannot be a scale."""
    weight = np.full((128, 2), 2.0**-24, np.float16)
    stored = quantize(weight, DEQUANTIZING[0])
    assert (stored.scales > 0).all() and not stored.integers.astype(np.int8).any()


def test_tensorrt_takes_the_graph() -> None:
    """TensorRT needs positive scales and no zero points; the scales of MatMulNBits may be negative."""
    how = quantization("int4", target("tensorrt"))
    assert how == Quantization("int4", 128, True, DEQUANTIZED)
    weight = random(256, 8)
    weight[:128, 0] = 0
    stored = quantize(weight, how)
    assert stored.zero_points is None and (stored.scales > 0).all()
    assert (quantize(weight, Quantization("int4", 128, True)).scales < 0).any()
    model, _ = quantized(layer("float16"), how)
    assert not lint(model, Version(10, 15))
    assert "opset" in {finding.operator for finding in lint(model, Version(10, 3))}
    operator, _ = quantized(layer("float16"), Quantization("int4"))
    assert {x.operator for x in lint(operator, Version(10, 15))} == {"com.microsoft.MatMulNBits"}


def test_a_bundle_of_int4_weights_for_tensorrt(int4_bundle: tuple[Path, Exported]) -> None:
    """The target's graphs at the opset of blocks; so the bundle needs a newer version."""
    folder, exported = int4_bundle
    bundle = Bundle.load(folder)
    assert exported.manifest.opset == 21 and all(p.passed for p in exported.parity)
    for spec in exported.manifest.graphs:
        graph = onnx.load(folder / spec.file, load_external_data=False)
        assert [o.version for o in graph.opset_import if not o.domain] == [21]
        assert ("DequantizeLinear" in {node.op_type for node in graph.graph.node}) == (spec.kind == "segment")
    assert floor("tensorrt", 21) == Version(10, 15) and lint_bundle(bundle) == ()
    assert {x.operator for x in lint_bundle(bundle, Version(10, 3))} == {"opset", "DequantizeLinear"}


@pytest.mark.parametrize(
    ("name", "kind", "options", "problem"),
    [
        ("int3", "cpu", {}, "'int3' is not known; use one of int8, int4"),
        ("int4", "cpu", {"block_size": 48}, "48 is not known; use one of 16, 32"),
        ("int4", "cpu", {"accuracy_level": 2}, "level 2 is not known"),
        ("int8", "tensorrt", {}, "not as int8; use --quantize int4"),
        ("int4", "tensorrt", {"symmetric": False}, "no zero points"),
        ("int4", "tensorrt", {"block_size": 32}, "blocks of 64 or 128, not of 32"),
        ("int4", "tensorrt", {"accuracy_level": 4}, "accuracy level 0"),
    ],
)
def test_what_a_target_cannot_run_is_refused(name: str, kind: str, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError) as raised:
        quantization(name, target(kind), **options)
    assert problem in str(raised.value) and "\n" not in str(raised.value)


def test_a_target_has_its_own_defaults() -> None:
    assert quantization("int8", target("cpu")) == Quantization("int8", 32, False)
    assert quantization("int4", target("cuda"), 64, True) == Quantization("int4", 64, True)


def test_the_cpu_has_no_bf16() -> None:
    with pytest.raises(InputError, match="no bf16; use --dtype fp16 or fp32, or --target cuda"):
        target("cpu", "bf16")
    assert target("cuda", "bf16").torch_dtype == torch.bfloat16


def test_blocks_that_do_not_fit_and_broken_weights_are_refused() -> None:
    with pytest.raises(InputError, match="40 inputs cannot be stored in blocks of 64"):
        quantize(random(40, 4), DEQUANTIZING[0])
    with pytest.raises(InputError, match="inf or NaN"):
        quantize(np.full((32, 2), np.inf, np.float32), Quantization("int4"))
    with pytest.raises(InputError, match="symmetric int4"):
        dataclasses.replace(DEQUANTIZING[0], symmetric=False)


def test_the_root_logger_is_not_changed() -> None:
    """In a separate process, because only the first import sets up the root logger."""
    code = (
        "import logging, numpy as np; from secateur.export.quantize import quantize; "
        "from secateur.bundle.manifest import Quantization; "
        "quantize(np.ones((32, 4), np.float32), Quantization('int4')); logging.getLogger('x').info('chatter'); "
        "print(logging.getLogger().handlers, logging.getLogger().level)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"[] {logging.WARNING}\n", "")
