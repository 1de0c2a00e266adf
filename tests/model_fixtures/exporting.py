# SPDX-License-Identifier: Apache-2.0
"""Run modules with one input, such as vision encoders, in ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from secateur.bundle.manifest import GraphSpec, TensorSpec
from secateur.export.graphs import Graph
from secateur.export.to_onnx import FORBIDDEN, to_onnx
from secateur.families.base import Family


def random_pixels(shape: tuple[int, ...], batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def check_in_onnx(
    module: nn.Module,
    shape: tuple[int, ...],
    opset: int,
    folder: Path,
    tolerance: float = 1e-4,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Export at one batch size, compare ONNX Runtime with torch at another, and return the ONNX model."""
    made = module(random_pixels(shape).to(dtype))
    outputs = made if isinstance(made, tuple) else (made,)
    specs = tuple(
        TensorSpec(f"output_{i}", str(x.dtype).removeprefix("torch."), ("B", *x.shape[1:]))
        for i, x in enumerate(outputs)
    )
    given = TensorSpec("given", str(dtype).removeprefix("torch."), ("B", *shape))
    path = folder / "graph.onnx"
    to_onnx(Graph(GraphSpec("graph", "vision", path.name, (given,), specs), module), path, opset)
    pixels = random_pixels(shape, batch=3, seed=1).to(dtype)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = module(pixels)
    for ours, wanted in zip(
        session.run(None, {"given": pixels.numpy()}),
        expected if isinstance(expected, tuple) else (expected,),
        strict=True,
    ):
        assert ours.dtype == wanted.numpy().dtype
        np.testing.assert_allclose(ours, wanted.numpy(), rtol=tolerance, atol=tolerance * wanted.abs().max().item())
    model = onnx.load(path)
    assert not FORBIDDEN & {node.op_type for node in model.graph.node}
    return model


def written(module: nn.Module, family: Family, outputs: dict[str, Tensor], opset: int, folder: Path) -> tuple[Any, int]:
    """Export a vision module and compare it with torch on another batch; return its operator counts and file size."""
    pixels = TensorSpec("pixel_values", "float32", ("B", 3, *family.bucket))
    specs = tuple(
        TensorSpec(name, str(x.dtype).removeprefix("torch."), ("B", *x.shape[1:])) for name, x in outputs.items()
    )
    path = folder / "vision.onnx"
    to_onnx(Graph(GraphSpec("vision", "vision", path.name, (pixels,), specs), module), path, opset)
    fed = random_pixels(family.pixels, batch=3, seed=1)
    got = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"pixel_values": fed.numpy()}
    )
    expected = module(fed)
    for ours, wanted in zip(got, expected if isinstance(expected, tuple) else (expected,), strict=True):
        np.testing.assert_allclose(ours, wanted.numpy(), rtol=1e-4, atol=1e-4)
    found = Counter(node.op_type for node in onnx.load(path).graph.node)
    return found, sum(file.stat().st_size for file in folder.iterdir())
