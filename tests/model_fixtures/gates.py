# SPDX-License-Identifier: Apache-2.0
"""Fixtures for methods and selectors: statistics of a toy model, gates, random rows, and runs by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur.bundle.layout import Dimensions, Layout, ModelIdentity, View
from secateur.bundle.manifest import GraphSpec, TensorSpec
from secateur.bundle.schedule import Gate
from secateur.export.graphs import Graph
from secateur.export.to_onnx import to_onnx
from secateur.selection.selector import GateInputs, GateSite, Selector
from secateur.selection.statistics import LayerRows, Statistics
from secateur.selection.topk import best

START, HEADS, KV_HEADS, HEAD_DIM, WIDTH = 3, 4, 2, 8, 16
BATCH, ROWS = 7, 31  # unlike all other sizes here, so that an export recognizes its dynamic dimensions
SIGNIFICANCE = ("received", "given", "class_token")
DATA_DEPENDENT = {"NonZero", "Compress", "Unique", "Loop", "If", "Scan", "ScatterElements", "ScatterND", "OneHot"}


def dimensions(layers: int) -> Dimensions:
    return Dimensions(layers, WIDTH, HEADS, KV_HEADS, HEAD_DIM, 3 * WIDTH, 100, 512, WIDTH)


class ToyProjections:
    """Random projections of a layer, with a norm without weights and without positions."""

    query_bias: Tensor | None = None
    key_bias: Tensor | None = None

    def __init__(self, layer: int) -> None:
        generator = torch.Generator().manual_seed(layer)
        self.query = torch.randn(HEADS * HEAD_DIM, WIDTH, generator=generator)
        self.key = torch.randn(KV_HEADS * HEAD_DIM, WIDTH, generator=generator)

    def normalize(self, rows: Tensor) -> Tensor:
        return rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + 1e-6)

    def heads(self, query: Tensor, key: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        batch, rows = query.shape[:2]
        return (
            query.view(batch, rows, HEADS, HEAD_DIM).transpose(1, 2),
            key.view(batch, rows, KV_HEADS, HEAD_DIM).transpose(1, 2),
        )


def toy_layers(layers: int, samples: int, tokens: int) -> Iterator[LayerRows]:
    """Yield random rows of each layer: head, image, and a question whose length differs between samples."""
    for layer in range(layers):
        generator = torch.Generator().manual_seed(1000 + layer)
        rows = [torch.randn(1, START + tokens + 2 + i % 3, WIDTH, generator=generator) for i in range(samples)]
        yield LayerRows(layer, rows, ToyProjections(layer))


def learnable(statistics: Statistics) -> Statistics:
    """Return statistics on which tuning the ALVTS selectors helps: softer attention, and one sample throughout."""
    layers = statistics.layers
    assert layers is not None

    def walk() -> Iterator[LayerRows]:
        for layer in layers():
            layer.projections.query = 0.5 * layer.projections.query
            layer.projections.key = 0.5 * layer.projections.key
            yield layer._replace(rows=[layer.rows[0]] * len(layer.rows))

    return replace(statistics, layers=walk)


@pytest.fixture
def measured() -> Callable[..., Statistics]:
    """Make statistics of a model of this depth and grid; `change` is the share of tokens that each layer changes."""

    def make(layers: int = 16, grid: tuple[int, int] = (4, 5), change: Sequence[float] | None = None) -> Statistics:
        tokens, samples = grid[0] * grid[1], 0 if change is None else 8
        similarity = np.full((layers, samples, tokens), 0.99, np.float32)
        for layer, share in enumerate(change or ()):
            similarity[layer].reshape(-1)[: round(share * samples * tokens)] = 0.9
        rng = np.random.default_rng(0)
        falling = np.linspace(1, 0, layers, dtype=np.float32)[:, None]
        return Statistics(
            model=ModelIdentity("llava", layers, tokens, "sha256:0"),
            dimensions=dimensions(layers),
            layout=Layout((0,) * START, (View(START, tokens, grid),)),
            samples=samples,
            seed=0,
            similarity=similarity,
            attention=np.full((layers, samples), 0.25, np.float32),
            drop_divergence=np.repeat(falling, samples, axis=1),
            cross_attention=rng.random((layers, samples, tokens), np.float32) ** 4,
            self_attention=rng.random((layers, samples, tokens), np.float32) ** 4,
            encoder_variance=np.repeat(np.array([[1e-3, 1e-6]], np.float32), samples, axis=0),
            layers=partial(toy_layers, layers, samples, tokens),
        )

    return make


@pytest.fixture
def site() -> Callable[..., GateSite]:
    """Make the site of a gate in the toy model."""

    def make(
        gate: Gate, tokens: int, grid: tuple[int, int], tensors: Mapping[str, NDArray[Any]] | None = None
    ) -> GateSite:
        return GateSite(gate, tokens, START, grid, dimensions(16), tensors or {}, ToyProjections(gate.layer))

    return make


@pytest.fixture
def random_rows() -> Callable[..., GateInputs]:
    """Make gate inputs with `tokens` vision rows; with `whole` the scored tensors are integers, so that scores tie."""

    def make(tokens: int, batch: int = BATCH, seed: int = 0, whole: bool = True) -> GateInputs:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        def scored(*shape: int) -> Tensor:
            return torch.randint(-1, 2, shape, generator=generator).float() if whole else normal(*shape)

        mask = torch.ones(batch, ROWS, dtype=torch.int64)
        mask[-1, -1] = 0
        index = torch.stack([torch.randperm(2 * tokens, generator=generator)[:tokens].sort().values for _ in mask])
        hidden = normal(batch, ROWS, WIDTH)
        encoder = {f"{kind}.{layer}": scored(batch, tokens).abs() for kind in SIGNIFICANCE for layer in (-1, -2)}
        read = {
            "query": scored(batch, HEADS, HEAD_DIM),
            "text_query": scored(batch, HEADS, HEAD_DIM),
            "queries": scored(ROWS, batch, HEADS, HEAD_DIM),
            "key": scored(ROWS, batch, KV_HEADS, HEAD_DIM),
            "layer_input": hidden + scored(batch, ROWS, WIDTH),
            "patch_key.-1": scored(batch, tokens, HEAD_DIM),
            "patch_key.-2": scored(batch, tokens, HEAD_DIM),
        } | encoder
        positions = torch.arange(ROWS).repeat(batch, 1)
        return GateInputs(hidden, positions, mask, index, START, read)

    return make


class Loudest(Selector):
    """Keeps the rows with the largest first number plus the tensors read, and records its inputs.

    Tensors read are summed over all axes but rows and samples.
    """

    def __init__(self, keep: int, reads: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.keep, self.reads = keep, reads
        self.seen: GateInputs | None = None

    def forward(self, rows: GateInputs) -> Tensor:
        self.seen = rows
        score = rows.vision[..., 0]
        start, end = rows.image_start, rows.image_start + score.shape[1]
        for name in self.reads:
            read = rows.read[name]
            if name == "key":
                score = score + read.sum(dim=(2, 3)).T[:, start:end]
            elif name == "layer_input":
                score = score + read[:, start:end].sum(dim=-1)
            elif name == "query":
                score = score * read.sum(dim=(1, 2))[:, None]
            else:
                score = score + read
        return best(score, self.keep)


class Several(nn.Module):
    """Several selectors in one graph, each with its own inputs."""

    def __init__(self, selectors: Sequence[Selector]) -> None:
        super().__init__()
        self.selectors = nn.ModuleList(selectors)
        self.reads = [selector.reads for selector in selectors]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given, slots = list(tensors), []
        for selector, reads in zip(self.selectors, self.reads, strict=True):
            rows = [given.pop(0) for _ in range(4)]
            read = {name: given.pop(0) for name in reads}
            slots.append(selector(GateInputs(rows[0], rows[1], rows[2], rows[3], START, read)))
        return tuple(slots)


@dataclass(frozen=True)
class Exported:
    """The outputs of ONNX Runtime, and the graph."""

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
    """Export selectors and run them, each on its own rows of `random_rows(..., batch=BATCH)`."""

    def run(selectors: Sequence[Selector], fed: Sequence[GateInputs], counts: Sequence[int], opset: int) -> Exported:
        named: dict[str, Tensor] = {}
        for i, (selector, rows) in enumerate(zip(selectors, fed, strict=True)):
            tensors = dict(zip(GateInputs._fields, rows[:4], strict=False)) | {n: rows.read[n] for n in selector.reads}
            named |= {f"{name}.{i}": tensor for name, tensor in tensors.items()}
        return exported(Several(selectors), named, counts, opset)

    return run


def check_static(graph: onnx.GraphProto) -> None:
    """Check that no output size depends on data, and that every TopK has a constant K and sorts."""
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    for node in graph.node:
        assert node.domain == "" and node.op_type not in DATA_DEPENDENT, node.op_type
        if node.op_type == "TopK":
            assert node.input[1] in constants
            assert all(a.i == 1 for a in node.attribute if a.name == "sorted")
