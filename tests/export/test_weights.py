# SPDX-License-Identifier: Apache-2.0
"""Weights of a bundle are stored once, at positions that depend neither on cuts nor on targets."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.external_data_helper import ExternalDataInfo
from torch import Tensor, nn

from secateur.bundle.manifest import GraphSpec, TensorSpec
from secateur.checkpoints.streaming import stream
from secateur.errors import BadBundle
from secateur.export.graphs import Graph
from secateur.export.segments import Segment
from secateur.export.to_onnx import to_onnx
from secateur.export.weights import PAGE, WeightStore, model_parts
from secateur.families.base import Family
from secateur.families.llava import Family as Llava

WIDTH = 80


class Odd(nn.Module):
    """Uses weights in all ways: for 3-D and 2-D rows, tied, outside of their module, in a norm; and constants."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(300, WIDTH)
        self.wide, self.bare = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 300, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.register_buffer("shift", torch.arange(float(WIDTH)) / 100)

    def forward(self, ids: Tensor, rows: Tensor) -> Tensor:
        rows = self.wide(self.embed(ids) + rows + self.shift)
        rows = torch.matmul(rows, self.bare.weight.T) + torch.einsum("bti,oi->bto", rows, self.bare.weight)
        out: Tensor = self.head(self.norm(rows).sum(dim=1))
        return out


def odd(tied: bool = False) -> Graph:
    torch.manual_seed(0)
    given = (TensorSpec("ids", "int64", ("B", "T")), TensorSpec("rows", "float32", ("B", "T", WIDTH)))
    return Graph(GraphSpec("odd", "embed", "odd.onnx", given, (TensorSpec("out", "float32", ("B", 300)),)), Odd(tied))


def places(path: Path) -> dict[str, Any]:
    graph = onnx.load(path, load_external_data=False).graph
    return {x.name: ExternalDataInfo(x) for x in graph.initializer if x.external_data}


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def tiny() -> Family:
    return Llava.tiny()


def segment(family: Family, first: int, end: int, decomposed: bool = False) -> Graph:
    """Return a segment with its interface, without the rest of a bundle."""
    d, last = family.dimensions, end == family.dimensions.layers
    given = [
        TensorSpec("hidden_states", "float32", ("B", "S", d.width)),
        *(TensorSpec(name, "float32", ("B", 1, "S", d.head_dim)) for name in ("rotary_cos", "rotary_sin")),
        TensorSpec("attention_mask", "int64", ("B", "P+S")),
        *([TensorSpec("last_index", "int64", ("B",))] if last else []),
    ]
    out = ("logits", ("B", d.vocabulary)) if last else ("hidden_states.out", ("B", "S", d.width))
    outputs = [TensorSpec(out[0], "float32", out[1])]
    for layer in range(first, end):
        for part in ("key", "value"):
            given.append(TensorSpec(f"past_{part}.{layer}", "float32", ("P", "B", d.kv_heads, d.head_dim)))
            outputs.append(TensorSpec(f"new_{part}.{layer}", "float32", ("S", "B", d.kv_heads, d.head_dim)))
    spec = GraphSpec(f"segment_{first}", "segment", f"segment_{first}.onnx", tuple(given), tuple(outputs), (first, end))
    return Graph(spec, Segment(family.decoder, first, end, decomposed=decomposed))


def export(
    family: Family, folder: Path, cuts: tuple[int, ...], opset: int = 23, decomposed: bool = False
) -> WeightStore:
    store = WeightStore(folder, model_parts(family))
    for first, end in zip(cuts, cuts[1:], strict=False):
        graph = segment(family, first, end, decomposed)
        to_onnx(graph, folder / graph.spec.file, opset, store)
    return store


@pytest.fixture(scope="module")
def whole(tiny: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All layers in one segment, for opset 23."""
    folder = tmp_path_factory.mktemp("weights") / "whole"
    export(tiny, folder, (0, 4))
    return folder


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("tied", [False, True])
def test_every_use_of_a_weight_gives_the_same_numbers(tmp_path: Path, opset: int, tied: bool) -> None:
    graph = odd(tied)
    to_onnx(graph, tmp_path / "odd.onnx", opset)
    onnx.checker.check_model(tmp_path / "odd.onnx")
    ids, rows = torch.randint(300, (2, 5)), torch.randn(2, 5, WIDTH)
    found = onnxruntime.InferenceSession(tmp_path / "odd.onnx").run(None, {"ids": ids.numpy(), "rows": rows.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found[0], graph.module(ids, rows), rtol=1e-3, atol=1e-3)
    stored = sum(weight.nbytes for weight in graph.module.parameters())
    assert stored <= (tmp_path / "odd.data").stat().st_size < stored + PAGE * len(places(tmp_path / "odd.onnx"))


def test_no_weight_is_transposed_in_a_segment(tiny: Family, whole: Path, tmp_path: Path) -> None:
    export(tiny, tmp_path, (0, 4), opset=20, decomposed=True)
    for folder in (tmp_path, whole):
        graph = onnx.load(folder / "segment_0.onnx", load_external_data=False).graph
        outside = {x.name: tuple(x.dims) for x in graph.initializer if x.external_data}
        read = Counter(node.op_type for node in graph.node for name in node.input if name in outside)
        assert read["MatMul"] == 4 * 7 and read["Gemm"] == 1 and not read["Transpose"], read
        assert outside["head.weight"] == (tiny.dimensions.width, tiny.dimensions.vocabulary)


def test_weights_start_at_pages_of_files_next_to_the_graph(whole: Path) -> None:
    found = places(whole / "segment_0.onnx")
    assert {info.location for info in found.values()} == {"head.data", *(f"layer_0{i}.data" for i in range(4))}
    for name, info in found.items():
        assert info.offset % PAGE == 0, name
        assert info.offset + info.length <= (whole / info.location).stat().st_size
    for location in {info.location for info in found.values()}:
        spans = sorted((i.offset, i.offset + i.length) for i in found.values() if i.location == location)
        assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))


def test_cuts_and_targets_do_not_move_weights(tiny: Family, whole: Path, tmp_path: Path) -> None:
    export(tiny, tmp_path, (0, 2, 4), opset=20, decomposed=True)
    one, two = digests(whole), digests(tmp_path)
    data = {name for name in one if name.endswith(".data")}
    assert data and {name: one[name] for name in data} == {n: d for n, d in two.items() if n.endswith(".data")}


def test_two_exports_have_equal_bytes(tiny: Family, whole: Path, tmp_path: Path) -> None:
    export(tiny, tmp_path, (0, 4))
    assert digests(tmp_path) == digests(whole)


def test_a_streamed_checkpoint_gives_the_same_bytes(tiny: Family, whole: Path, tmp_path: Path) -> None:
    tiny.model.save_pretrained(tmp_path / "checkpoint", max_shard_size="60KB")
    model = stream(Llava.architecture, tmp_path / "checkpoint")
    assert model is not None
    export(Llava(model, tiny.processor, "streamed"), tmp_path / "streamed", (0, 4))
    assert digests(whole) == digests(tmp_path / "streamed")


def test_the_model_is_unchanged(tiny: Family, tmp_path: Path) -> None:
    before = {name: id(weight) for name, weight in tiny.model.named_parameters()}
    export(tiny, tmp_path, (0, 4))
    assert before == {name: id(weight) for name, weight in tiny.model.named_parameters()}
    assert all(weight.device.type == "cpu" and type(weight) is nn.Parameter for weight in tiny.model.parameters())


def test_equal_files_of_another_bundle_are_linked(tiny: Family, whole: Path, tmp_path: Path) -> None:
    shared = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in whole.glob("*.data")}
    store = WeightStore(tmp_path, model_parts(tiny), shared)
    graph = segment(tiny, 2, 4)
    to_onnx(graph, tmp_path / graph.spec.file, 23, store)
    data = sorted(p.name for p in tmp_path.glob("*.data"))
    assert data == ["head.data", "layer_02.data", "layer_03.data"]
    assert all((tmp_path / name).samefile(whole / name) for name in data)


def test_a_damaged_file_is_not_linked(tiny: Family, whole: Path, tmp_path: Path) -> None:
    file = Path(shutil.copytree(whole, tmp_path / "first")) / "layer_02.data"
    shared = {file: hashlib.sha256(file.read_bytes()).hexdigest()}
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(BadBundle, match="layer_02.data is damaged"):
        WeightStore(tmp_path / "second", model_parts(tiny), shared).place(next(tiny.decoder.layers[2].parameters()))


def test_a_file_of_another_size_is_written_again(tiny: Family, tmp_path: Path) -> None:
    (tmp_path / "layer_02.data").write_bytes(b"short")
    store = WeightStore(tmp_path / "second", model_parts(tiny), {tmp_path / "layer_02.data": ""})
    place = store.place(next(tiny.decoder.layers[2].parameters()))
    assert place is not None and (tmp_path / "second" / place.file).stat().st_size > 5


def test_small_graphs_keep_their_weights(tmp_path: Path) -> None:
    given = (TensorSpec("rows", "float32", ("B", "T", WIDTH)),)
    spec = GraphSpec("small", "projector", "small.onnx", given, (TensorSpec("out", "float32", ("B", "T", WIDTH)),))
    to_onnx(Graph(spec, nn.Linear(WIDTH, WIDTH)), tmp_path / "small.onnx", 23)
    assert [p.name for p in tmp_path.iterdir()] == ["small.onnx"]
