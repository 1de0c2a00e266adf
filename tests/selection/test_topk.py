# SPDX-License-Identifier: Apache-2.0
"""Top-k and ascending slots, also of more than one TopK can return."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur.bundle.layout import Dimensions
from secateur.bundle.manifest import GraphSpec, TensorSpec
from secateur.export.gates import PruneGate
from secateur.export.graphs import Graph
from secateur.export.interface import Interface
from secateur.export.lint import lint
from secateur.export.operators import OLDEST
from secateur.export.spans import Spans, ViewSpan
from secateur.export.to_onnx import to_onnx
from secateur.selection import topk
from secateur.selection.selector import GateInputs, Selector
from secateur.selection.topk import ascending, best, top

OPSET = 20
scores = arrays(np.float32, (2, 13), elements=st.sampled_from([-np.inf, -3e37, -1.0, -0.0, 0.0, 0.5, 2.0, np.inf]))


def largest(score: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return indices by falling score, then rising index."""
    index = np.broadcast_to(np.arange(score.shape[-1]), score.shape)
    return np.lexsort((index, -score), axis=-1)[..., :count]


@given(scores, st.integers(1, 13), st.integers(1, 14))
def test_the_largest_in_rounds_are_the_largest(score: NDArray[np.float32], count: int, limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "LIMIT", limit)
        assert top(torch.from_numpy(score), count).tolist() == largest(score, count).tolist()


@given(st.permutations(range(17)), st.integers(0, 17), st.integers(1, 18))
def test_slots_ascend_in_rounds(order: list[int], count: int, limit: int) -> None:
    slots = torch.tensor([order[:count], order[17 - count :]], dtype=torch.int64).reshape(2, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "LIMIT", limit)
        assert ascending(slots).tolist() == [sorted(row) for row in slots.tolist()]


class Top(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, score: Tensor) -> Tensor:
        return top(score, self.count)


def export(tokens: int, count: int, path: Path) -> None:
    """Export the best `count` of score [B, tokens]."""
    inputs = (TensorSpec("score", "float32", ("B", tokens)),)
    outputs = (TensorSpec("index", "int64", ("B", count)),)
    to_onnx(Graph(GraphSpec("top", "gate", path.name, inputs, outputs), Top(count)), path, OPSET)


def test_a_graph_in_rounds_equals_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk, "LIMIT", 4)
    export(13, 11, tmp_path / "top.onnx")
    score = np.random.default_rng(0).integers(-2, 3, (5, 13)).astype(np.float32)
    score[0, 3:9] = -np.inf
    assert _largest_k(tmp_path / "top.onnx") == 4
    found = onnxruntime.InferenceSession(tmp_path / "top.onnx").run(None, {"score": score})[0]
    assert found.tolist() == top(torch.from_numpy(score), 11).tolist() == largest(score, 11).tolist()


class First(Selector):
    """Keeps the rows whose first channel is largest."""

    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, rows: GateInputs) -> Tensor:
        return best(rows.vision[:, :, 0].float(), self.keep)


def test_a_gate_keeps_more_than_one_topk_can_return(tmp_path: Path) -> None:
    tokens, keep, start = 5000, 4000, 2
    dimensions = Dimensions(4, 3, 1, 1, 2, 4, 10, 9000, 3)
    inputs, outputs = Interface(dimensions, tokens, tokens, "float16").prune(2, tokens, keep)
    path = tmp_path / "gate.onnx"
    spec = GraphSpec("gate", "gate", "gate.onnx", inputs, outputs, (2, 2))
    to_onnx(Graph(spec, PruneGate([First(keep)], Spans((ViewSpan(start, tokens, 0),))), rows=tokens + 7), path, OPSET)
    assert lint(path, OLDEST) == ()
    assert _largest_k(path) == topk.LIMIT

    rows = tokens + 5
    states = np.random.default_rng(0).integers(-500, 500, (2, rows, 3)).astype(np.float16)  # many ties
    index = np.broadcast_to(np.arange(tokens), (2, tokens)) * 3
    positions = np.broadcast_to(np.arange(rows), (2, rows))
    feeds = (states, positions, np.ones((2, rows), np.int64), index)
    named = {x.name: value for x, value in zip(inputs, feeds, strict=True)}
    found = onnxruntime.InferenceSession(path).run(None, named)
    kept = np.sort(largest(states[:, start : start + tokens, 0].astype(np.float32), keep))
    assert np.array_equal(found[3], kept * 3)
    assert np.array_equal(found[1][:, start : start + keep], kept + start)
    assert np.array_equal(found[0][1, start : start + keep], states[1, kept[1] + start])


def test_one_topk_of_too_many_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk, "LIMIT", 5000)
    export(4500, 4000, tmp_path / "top.onnx")
    (finding,) = lint(tmp_path / "top.onnx", OLDEST)
    assert "K is 4000, at most 3840" in finding.problem and "rounds" in finding.mend


def _largest_k(path: Path) -> int:
    graph = onnx.load(path).graph
    values = {x.name: onnx.numpy_helper.to_array(x) for x in graph.initializer}
    values |= {n.output[0]: onnx.numpy_helper.to_array(n.attribute[0].t) for n in graph.node if n.op_type == "Constant"}
    return max(int(values[node.input[1]][0]) for node in graph.node if node.op_type == "TopK")
