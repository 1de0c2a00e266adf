# SPDX-License-Identifier: Apache-2.0
"""Weights as inputs of graphs: the same results, one place in the files for each weight, joined products."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from secateur.bundle.manifest import GraphSpec, TensorSpec, WeightSpec
from secateur.export.graphs import Graph
from secateur.export.to_onnx import to_onnx
from secateur.export.weights import PAGE, WeightStore

WIDTH, WIDE = 128, 192


class Layer(nn.Module):
    """Products of the same rows and of two-dimensional rows, with and without bias, and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, WIDTH)
        self.a, self.b, self.c = nn.Linear(WIDTH, WIDE), nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDE)
        self.down = nn.Linear(WIDE, WIDTH)
        self.flat = nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = self.table(ids)
        mixed = self.down(torch.sigmoid(self.a(rows)) * self.c(rows)) + self.b(rows) @ self.scale
        last: torch.Tensor = self.flat(mixed[:, 0])
        return last


def exported(module: Layer, folder: Path) -> tuple[Path, tuple[WeightSpec, ...]]:
    inputs = (TensorSpec("ids", "int64", ("B", "S")),)
    outputs = (TensorSpec("last", "float32", ("B", WIDTH)),)
    path = folder / "layer.onnx"
    store = WeightStore(folder, {"layer": module}, inputs=True)
    return path, to_onnx(Graph(GraphSpec("layer", "gate", path.name, inputs, outputs), module), path, 20, store)


def values(folder: Path, weight: WeightSpec) -> NDArray[np.float32]:
    mapped = np.memmap(folder / weight.file, mode="r", offset=weight.offset, shape=(weight.nbytes,))
    return np.asarray(mapped.view(weight.dtype).reshape(weight.shape))


@pytest.fixture
def module() -> Layer:
    torch.manual_seed(0)
    return Layer().eval()


def test_results_are_those_of_the_module(module: Layer, tmp_path: Path) -> None:
    path, weights = exported(module, tmp_path)
    given = {weight.name: values(tmp_path, weight) for weight in weights}
    for ids in (torch.arange(12).reshape(3, 4), torch.tensor([[63]])):
        (found,) = onnxruntime.InferenceSession(path).run(None, given | {"ids": ids.numpy()})
        np.testing.assert_allclose(found, module(ids).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_products_of_the_same_rows_are_one(module: Layer, tmp_path: Path) -> None:
    path, weights = exported(module, tmp_path)
    named = {weight.name: weight for weight in weights}
    expected = torch.cat([module.a.weight, module.c.weight, module.b.weight]).detach().numpy()
    np.testing.assert_array_equal(values(tmp_path, named["weight.a+c+b.weight"])[0], expected)
    products = [node for node in onnx.load(path, load_external_data=False).graph.node if node.op_type == "MatMul"]
    assert len(products) == 4, "a with b and c, down, flat, and the product with scale"


def test_a_tied_table_is_stored_once(tmp_path: Path) -> None:
    table, head = nn.Embedding(300, WIDTH), nn.Linear(WIDTH, 300, bias=False)
    head.weight = table.weight
    store = WeightStore(tmp_path, {"embed": table, "head": head}, inputs=True)
    found: list[WeightSpec] = []
    for module, given in (
        (table, TensorSpec("ids", "int64", ("B", "S"))),
        (head, TensorSpec("x", "float32", ("B", 1, WIDTH))),
    ):
        out = TensorSpec("y", "float32", (*given.shape[:2], WIDTH if module is table else 300))
        spec = GraphSpec("graph", "embed", f"{given.name}.onnx", (given,), (out,))
        found += to_onnx(Graph(spec, module), tmp_path / spec.file, 20, store)
    assert [(x.shape, x.file, x.offset) for x in found] == [
        ((300, WIDTH), "embed.data", 0),
        ((1, 300, WIDTH), "embed.data", 0),
    ]


def test_files_hold_nothing_but_weights(module: Layer, tmp_path: Path) -> None:
    exported(module, tmp_path)
    stored = sum(weight.nbytes for weight in module.parameters())
    assert stored <= (tmp_path / "layer.data").stat().st_size < stored + PAGE * len(list(module.parameters()))


def test_other_weights_stay_constants(module: Layer, tmp_path: Path) -> None:
    """Biases, and a matrix that is not multiplied as its transpose."""
    path, weights = exported(module, tmp_path)
    constants = {x.name: tuple(x.dims) for x in onnx.load(path, load_external_data=False).graph.initializer}
    assert constants["scale"] == (WIDTH, WIDTH)
    assert {"a.bias", "c.bias", "down.bias", "flat.bias"} <= constants.keys()
    assert not [weight for weight in weights if weight.name.endswith(("scale", "bias"))]


def test_weights_are_joined_before_their_file_is_written(module: Layer, tmp_path: Path) -> None:
    store = WeightStore(tmp_path, {"layer": module}, inputs=True)
    a, b, c, down = (getattr(module, name).weight for name in ("a", "b", "c", "down"))
    assert store.join([a, c]) and store.join([a, c])
    assert not store.join([c, b]), "c is stored after a"
    first, second = store.place(a), store.place(c)
    assert first is not None and second is not None and second.offset == first.offset + first.size
    assert not store.join([b, down]), "the file is written"
    assert store.join([a, c])


def test_a_file_of_another_layout_is_not_shared(module: Layer, tmp_path: Path) -> None:
    """Another bundle may join other weights: its file has the same size where weights are whole pages."""
    parts = {"layer": nn.ModuleList([module.b, module.flat, module.down])}
    b, flat, down = (getattr(module, name).weight for name in ("b", "flat", "down"))
    first = WeightStore(tmp_path / "first", parts, inputs=True)
    assert first.join([b, flat])
    first.place(b)
    data = tmp_path / "first" / "layer.data"
    shared = {data: hashlib.sha256(data.read_bytes()).hexdigest()}
    same = WeightStore(tmp_path / "same", parts, shared, inputs=True)
    assert same.join([b, flat])
    same.place(b)
    assert (tmp_path / "same" / "layer.data").samefile(data)
    for order in ([flat, b], [b, down]):
        folder = tmp_path / str(id(order))
        other = WeightStore(folder, parts, shared, inputs=True)
        assert other.join(order)
        for weight in order:
            place = other.place(weight)
            assert place is not None
            stored = (folder / "layer.data").read_bytes()[place.offset : place.offset + place.size]
            assert stored == weight.detach().numpy().tobytes()
        assert not (folder / "layer.data").samefile(data)
