# SPDX-License-Identifier: Apache-2.0
"""VisionZip against plain loops: chosen and merged tokens."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur.bundle.manifest import GraphSpec, TensorSpec
from secateur.bundle.schedule import Gate
from secateur.errors import BadSchedule
from secateur.export.graphs import Graph
from secateur.export.to_onnx import to_onnx
from secateur.families.base import Family
from secateur.methods.visionzip import Method, ZipSelector
from secateur.selection.budget import BudgetRequest
from secateur.selection.selector import Fixed, GateInputs
from secateur.selection.topk import gather

READS = ("class_token.-2", "patch_key.-2")


def oracle(
    score: NDArray[Any], keys: NDArray[Any], features: NDArray[Any], dominant: int, contextual: int
) -> tuple[list[int], NDArray[Any]]:
    """Return the kept slots, ascending, and their rows, of one image: [N], [N, dk], [N, D]."""
    best = sorted(range(len(score)), key=lambda i: (-score[i], i))[:dominant]
    rest = [i for i in range(len(score)) if i not in best]
    targets = [rest[i * (len(rest) // contextual)] for i in range(contextual)]
    unit = [key / np.linalg.norm(key) for key in keys.astype(np.float64)]
    belongs: dict[int, list[int]] = {target: [] for target in targets}
    for i in rest:
        if contextual and i not in targets:
            alike = [float(unit[i] @ unit[target]) for target in targets]
            belongs[targets[alike.index(max(alike))]].append(i)
    slots = sorted(best + targets)
    rows = [
        features[i] + np.mean([features[j] for j in belongs[i]], axis=0) if belongs.get(i) else features[i]
        for i in slots
    ]
    return slots, np.stack(rows)


def rows_of(score: Tensor, keys: Tensor, features: Tensor) -> GateInputs:
    index = torch.arange(score.shape[1]).expand(score.shape[0], -1)
    return GateInputs(features, index, index, index, 0, dict(zip(READS, (score, keys), strict=True)))


def random_rows_of(tokens: int, batch: int = 2, seed: int = 0, width: int = 6) -> GateInputs:
    """Return random rows with integer scores, so that they tie; keys and features are real numbers."""
    rng = np.random.default_rng(seed)
    made = (
        rng.integers(0, 4, (batch, tokens)),
        rng.normal(size=(batch, tokens, 5)),
        rng.normal(size=(batch, tokens, width)),
    )
    return rows_of(*(torch.tensor(x, dtype=torch.float32) for x in made))


@given(st.integers(3, 30), st.integers(0, 2**20), st.data())
def test_against_loops(tokens: int, seed: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, tokens - 1))
    contextual = data.draw(st.integers(0, keep))
    selector = ZipSelector(tokens, keep - contextual, contextual, READS[0])
    rows = random_rows_of(tokens, seed=seed)
    slots, merged = selector.kept(rows)
    assert torch.equal(slots, selector(rows))
    for i in range(2):
        score, keys, features = (x[i].numpy() for x in (rows.read[READS[0]], rows.read[READS[1]], rows.vision))
        wanted, values = oracle(score, keys, features, keep - contextual, contextual)
        assert slots[i].tolist() == wanted
        np.testing.assert_allclose(merged[i], values, rtol=1e-4, atol=1e-5)


def test_equal_keys_go_to_the_lower_target_and_are_averaged() -> None:
    """Six tokens: 1 is dominant, 0 and 3 are targets (every second of the rest), 2, 4 and 5 merge."""
    score = torch.tensor([[0.0, 9, 0, 0, 0, 0]])
    keys = torch.tensor([[[1.0, 0], [0, 3], [2, 0], [1, 0], [0, 1], [-1, 0]]])
    features = torch.tensor([[[1.0], [10], [100], [1000], [3], [5]]])
    rows, selector = rows_of(score, keys, features), ZipSelector(6, 1, 2, READS[0])
    slots, merged = selector.kept(rows)
    assert slots.tolist() == [[0, 1, 3]]  # all three are equally similar to 0 and to 3
    assert merged.tolist() == [[[1 + (100 + 3 + 5) / 3], [10], [1000]]]
    keys[0, 3] = torch.tensor([0.0, 7])  # the length of a key has no effect
    assert selector.kept(rows)[1].tolist() == [[[1 + 100], [10], [1000 + (3 + 5) / 2]]]


def test_dominant_rows_are_unchanged_and_slots_ascend() -> None:
    rows, selector = random_rows_of(24), ZipSelector(24, 6, 3, READS[0])
    slots, merged = selector.kept(rows)
    plain = gather(rows.vision, slots)
    changed = (plain != merged).any(dim=2)
    best = rows.read[READS[0]].sort(dim=1, descending=True, stable=True).indices[:, :6]
    for i in range(2):
        assert set(slots[i][changed[i]].tolist()).isdisjoint(best[i].tolist()) and changed[i].sum() <= 3
    assert bool((slots.diff(dim=1) > 0).all()) and bool(changed.any())


def test_half_precision_adds_in_fp32() -> None:
    rows = random_rows_of(24)
    half = rows._replace(hidden_states=(rows.hidden_states * 100).half())
    selector = ZipSelector(24, 6, 1, READS[0])
    _, merged = selector.kept(half)
    _, expected = selector.kept(half._replace(hidden_states=half.hidden_states.float()))
    assert merged.dtype == torch.float16
    assert torch.equal(merged, expected.half())


@pytest.mark.parametrize("keep", [0, 20])
def test_all_or_none_is_a_constant(keep: int, measured: Any, site: Any) -> None:
    asked = BudgetRequest(keep=(keep if keep else 0.0,))
    selector = Method.choose(site(Method().calibrate(measured(), asked).gates[0], 20, (4, 5)))
    rows = random_rows_of(20)
    slots, kept = selector.kept(rows)
    assert isinstance(selector, Fixed) and slots.tolist() == [list(range(keep))] * 2
    assert torch.equal(kept, rows.vision[:, :keep])


def test_published_split(measured: Any, site: Any) -> None:
    """54 dominant and 10 contextual tokens of 576; 162 and 30 for 192."""
    statistics = measured(32, (24, 24))
    gate = Method().calibrate(statistics, BudgetRequest()).gates[0]
    assert gate == Gate(0, 64, "vision", {"score": "class_token", "score_layer": -2, "contextual": 10})
    assert Method().calibrate(statistics, BudgetRequest(keep=(192,))).gates[0].selector["contextual"] == 30
    assert Method(contextual=0).calibrate(statistics, BudgetRequest()).gates[0].selector["contextual"] == 0
    selector = Method.choose(site(gate, 576, (24, 24)))
    assert selector.reads == READS
    bare = replace(statistics, dimensions=replace(statistics.dimensions, class_token=False))
    gate = Method().calibrate(bare, BudgetRequest()).gates[0]
    assert gate.selector["score"] == "received"
    assert Method.choose(site(gate, 576, (24, 24))).reads == ("received.-2", "patch_key.-2")


class Zip(nn.Module):
    def __init__(self, selector: ZipSelector) -> None:
        super().__init__()
        self.selector = selector

    def forward(self, features: Tensor, score: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        return self.selector.kept(rows_of(score, keys, features))


@pytest.mark.parametrize("opset", [20, 23])
def test_onnx(opset: int, tmp_path: Path) -> None:
    """ONNX gives the same slots and rows with tied scores; the split is computed once, all sizes are constant."""
    module, tokens = Zip(ZipSelector(24, 6, 4, READS[0])), 24
    rows = random_rows_of(tokens, batch=3)
    fed = {"features": rows.hidden_states, "score": rows.read[READS[0]], "keys": rows.read[READS[1]]}
    inputs = tuple(TensorSpec(name, "float32", ("B", *x.shape[1:])) for name, x in fed.items())
    outputs = (TensorSpec("slots", "int64", ("B", 10)), TensorSpec("merged", "float32", ("B", 10, 6)))
    path = tmp_path / "zip.onnx"
    to_onnx(Graph(GraphSpec("zip", "gate", path.name, inputs, outputs), module), path, opset)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    got = session.run(None, {name: x.numpy() for name, x in fed.items()})
    slots, merged = module(*fed.values())
    np.testing.assert_array_equal(got[0], slots.numpy())
    np.testing.assert_allclose(got[1], merged.numpy(), rtol=1e-5, atol=1e-6)
    found = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert not found.keys() & {"NonZero", "ScatterElements", "ScatterND", "OneHot", "Loop", "If", "Compress"}
    assert found["TopK"] == 3 and path.stat().st_size < 20_000


def test_images_of_a_batch_are_independent(demo: Family) -> None:
    pixels = torch.randn(2, *demo.pixels, generator=torch.Generator().manual_seed(0))
    vision, selector = demo.vision(READS), ZipSelector(144, 27, 5, READS[0])
    found = []
    for images in (pixels, *pixels.split(1)):
        features, score, keys = vision(images)
        found.append(selector.kept(rows_of(score, keys, features))[1])
    torch.testing.assert_close(found[0], torch.cat(found[1:]), rtol=1e-4, atol=1e-4)


def test_bad_options(measured: Any, site: Any) -> None:
    for bad in (-0.1, 1.5):
        with pytest.raises(BadSchedule, match="must be a share from 0 to 1"):
            Method(contextual=bad)
    with pytest.raises(BadSchedule, match="score_layer 0 must be below 0"):
        Method(score_layer=0)
    with pytest.raises(BadSchedule, match="--keep has 3 values"):
        Method().calibrate(measured(), BudgetRequest(keep=(0.5, 0.4, 0.3)))
    for count, message in ((-1, "must be a count within 0 and 5"), (6, "within 0 and 5"), (2.0, "contextual is 2.0")):
        gate = Gate(0, 5, "vision", {"contextual": count})
        with pytest.raises(BadSchedule, match=message):
            Method.choose(site(gate, 20, (4, 5)))
