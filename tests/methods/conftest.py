# SPDX-License-Identifier: Apache-2.0
"""A tiny place for gates, random rows for it, and selectors run through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur.artifacts import Dimensions, Gate, GraphSpec, Layout, ModelIdentity, TensorSpec
from secateur.calibration.statistics import Statistics
from secateur.export.graphs import Graph
from secateur.export.to_onnx import to_onnx
from secateur.methods.base import GateInputs, GateSite, Selector

START, HEADS, KV_HEADS, HEAD_DIM, WIDTH = 3, 4, 2, 8, 16
BATCH, ROWS = 7, 31  # like no other size here, so that an export can tell its dynamic dimensions
DATA_DEPENDENT = {"NonZero", "Compress", "Unique", "Loop", "If", "Scan", "ScatterElements", "ScatterND", "OneHot"}


def dimensions(layers: int) -> Dimensions:
    return Dimensions(layers, WIDTH, HEADS, KV_HEADS, HEAD_DIM, 3 * WIDTH, 100, 512, WIDTH)


@pytest.fixture
def measured() -> Callable[..., Statistics]:
    """Statistics of a model of the given depth and grid; `change` gives the share of tokens that each layer changes."""

    def make(layers: int = 16, grid: tuple[int, int] = (4, 5), change: Sequence[float] | None = None) -> Statistics:
        tokens, samples = grid[0] * grid[1], 0 if change is None else 8
        similarity = np.full((layers, samples, tokens), 0.99, np.float32)
        for layer, share in enumerate(change or ()):
            similarity[layer].reshape(-1)[: round(share * samples * tokens)] = 0.9
        return Statistics(
            ModelIdentity("llava", layers, tokens, "sha256:0"),
            dimensions(layers),
            Layout(START, tokens, grid),
            samples,
            0,
            similarity,
            np.full((layers, samples), 0.25, np.float32),
        )

    return make


@pytest.fixture
def site() -> Callable[..., GateSite]:
    def make(gate: Gate, tokens: int, grid: tuple[int, int]) -> GateSite:
        return GateSite(gate, tokens, START, grid, dimensions(16))

    return make


@pytest.fixture
def random_rows() -> Callable[..., GateInputs]:
    """Gate inputs for `tokens` vision rows; `whole` makes queries and keys integers, so that scores tie."""

    def make(tokens: int, batch: int = BATCH, seed: int = 0, whole: bool = True) -> GateInputs:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        def scored(*shape: int) -> Tensor:
            return torch.randint(-1, 2, shape, generator=generator).float() if whole else normal(*shape)

        mask = torch.ones(batch, ROWS, dtype=torch.int64)
        mask[-1, -1] = 0
        index = torch.stack([torch.randperm(2 * tokens, generator=generator)[:tokens].sort().values for _ in mask])
        return GateInputs(
            vision=normal(batch, tokens, WIDTH),
            vision_index=index,
            attention_mask=mask,
            query=scored(batch, HEADS, HEAD_DIM),
            key=scored(ROWS, batch, KV_HEADS, HEAD_DIM),
        )

    return make


class Several(nn.Module):
    """Selectors side by side, each with its own five inputs: one export for all of them."""

    def __init__(self, selectors: Sequence[Selector]) -> None:
        super().__init__()
        self.selectors = nn.ModuleList(selectors)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        rows = [GateInputs(*tensors[i : i + 5]) for i in range(0, len(tensors), 5)]
        return tuple(selector(inputs) for selector, inputs in zip(self.selectors, rows, strict=True))


@dataclass(frozen=True)
class Exported:
    """What ONNX Runtime answered, and the graph it ran."""

    outputs: list[NDArray[np.int64]]
    graph: onnx.GraphProto


@pytest.fixture
def exported(tmp_path: Path) -> Callable[..., Exported]:
    """Export a module that returns slots, one tensor for each of `counts`, and run it with inputs of another batch."""

    def run(module: nn.Module, named: Mapping[str, Tensor], counts: Sequence[int], opset: int) -> Exported:
        symbols = {BATCH: "B", ROWS: "S"}
        inputs = tuple(
            TensorSpec(name, str(x.dtype).removeprefix("torch."), tuple(symbols.get(d, d) for d in x.shape))
            for name, x in named.items()
        )
        outputs = tuple(TensorSpec(f"slots.{i}", "int64", ("B", count)) for i, count in enumerate(counts))
        graph = Graph(GraphSpec("test", "gate", "test.onnx", inputs, outputs), module, rows=ROWS - 2)
        path = tmp_path / "test.onnx"
        to_onnx(graph, path, opset)
        model = onnx.load(path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        used = {value.name for value in session.get_inputs()}
        feed = {name: tensor.numpy() for name, tensor in named.items() if name in used}
        check_static(model.graph)
        return Exported(list(session.run(None, feed)), model.graph)

    return run


@pytest.fixture
def exported_slots(exported: Callable[..., Exported]) -> Callable[..., Exported]:
    """The same for selectors, each with its own rows of `random_rows(..., batch=BATCH)`."""

    def run(selectors: Sequence[Selector], fed: Sequence[GateInputs], counts: Sequence[int], opset: int) -> Exported:
        named = {
            f"{field}.{i}": tensor
            for i, rows in enumerate(fed)
            for field, tensor in zip(GateInputs._fields, rows, strict=True)
        }
        return exported(Several(selectors), named, counts, opset)

    return run


def check_static(graph: onnx.GraphProto) -> None:
    """No node whose output size depends on data; every TopK has a constant K and sorts."""
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    for node in graph.node:
        assert node.domain == "" and node.op_type not in DATA_DEPENDENT, node.op_type
        if node.op_type == "TopK":
            assert node.input[1] in constants
            assert all(a.i == 1 for a in node.attribute if a.name == "sorted")
