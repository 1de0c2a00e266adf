# SPDX-License-Identifier: Apache-2.0
"""FoPru against plain loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from secateur.bundle.schedule import Gate
from secateur.errors import BadSchedule
from secateur.families.base import Family
from secateur.methods.fopru import FocalSelector, Method
from secateur.selection.budget import BudgetRequest
from secateur.selection.selector import Fixed, GateInputs, Selector
from secateur.selection.topk import gather


def rank(scores: list[float], keep: int) -> list[int]:
    """Return the indices of the `keep` largest scores, ties to the lower index, in raster order."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:keep])


def row(scores: list[float], keep: int, grid: tuple[int, int]) -> list[int]:
    """Return whole rows by their sum, then single tokens by rank."""
    height, width = grid
    lines = rank([sum(scores[y * width : (y + 1) * width]) for y in range(height)], keep // width)
    chosen = [y * width + x for y in lines for x in range(width)]
    left = [i for i in range(len(scores)) if i not in chosen]
    more = rank([scores[i] for i in left], keep - len(chosen))
    return sorted(chosen + [left[i] for i in more])


def rows_of(received: Tensor, given: Tensor | None = None) -> GateInputs:
    """Return the inputs of a gate after the vision encoder."""
    batch, tokens = received.shape
    features = torch.randn(batch, tokens, 4, generator=torch.Generator().manual_seed(0))
    index = torch.arange(tokens).expand(batch, -1)
    read = {"received.-2": received, "given.-2": received if given is None else given}
    return GateInputs(features, index, torch.ones_like(index), index, 0, read)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**20), st.data())
def test_against_loops(height: int, width: int, seed: int, data: st.DataObject) -> None:
    tokens = height * width
    scores = torch.tensor(np.random.default_rng(seed).integers(0, 4, (2, tokens)), dtype=torch.float32)
    keep = data.draw(st.integers(1, tokens))
    best = FocalSelector(keep, -2, False, None)(rows_of(scores))
    filled = FocalSelector(keep, -2, False, (height, width))(rows_of(scores)) if keep >= width else None
    for i, image in enumerate(scores.tolist()):
        assert best[i].tolist() == rank(image, keep)
        if filled is not None:
            assert filled[i].tolist() == row(image, keep, (height, width))


@given(st.integers(0, 2**20))
def test_auto_takes_the_direction_that_varies_more(seed: int) -> None:
    """Each image has its own direction; with equal variance it is the attention given."""
    rng = np.random.default_rng(seed)
    received, given_ = rng.integers(0, 3, (4, 9)).astype(float), rng.integers(0, 3, (4, 9)).astype(float)
    received[0] = given_[0, ::-1]
    slots = FocalSelector(4, -2, True, None)(rows_of(torch.tensor(received).float(), torch.tensor(given_).float()))
    for i in range(4):
        vary = [float(np.var(side)) for side in (received[i], given_[i])]
        if i and abs(vary[0] - vary[1]) < 1e-6:
            continue
        score = received[i] if i and vary[0] > vary[1] else given_[i]
        if i:
            assert slots[i].tolist() == rank(score.tolist(), 4)
        else:
            assert slots[i].tolist() in (rank(received[i].tolist(), 4), rank(given_[i].tolist(), 4))


def test_auto_differs_from_received() -> None:
    flat, peaked = torch.ones(1, 6), torch.tensor([[0.0, 0, 0, 5, 0, 6]])
    assert FocalSelector(2, -2, True, None)(rows_of(flat, peaked)).tolist() == [[3, 5]]
    assert FocalSelector(2, -2, True, None)(rows_of(peaked, flat)).tolist() == [[3, 5]]
    assert FocalSelector(2, -2, False, None)(rows_of(flat, peaked)).tolist() == [[0, 1]]


@pytest.mark.parametrize("fill", ["none", "rank"])
@pytest.mark.parametrize("strategy", ["rank", "row"])
def test_keeping_all_equals_no_gate(strategy: Any, fill: Any, measured: Any, site: Any) -> None:
    if (strategy, fill) == ("rank", "rank"):
        return
    gate = Method(strategy=strategy, row_fill=fill).calibrate(measured(), BudgetRequest(keep=(1.0,))).gates[0]
    selector = Method.choose(site(gate, 20, (4, 5)))
    rows = rows_of(torch.rand(2, 20))
    slots, kept = selector.kept(rows)
    assert slots.tolist() == [list(range(20))] * 2 and torch.equal(kept, rows.vision)


def test_rows_stay_whole(measured: Any, site: Any) -> None:
    gate = Method(strategy="row").calibrate(measured(), BudgetRequest(keep=(0.6,))).gates[0]
    assert gate.keep == 10
    for slots in Method.choose(site(gate, 20, (4, 5)))(rows_of(torch.rand(9, 20))):
        lines = (slots // 5).tolist()
        assert len(set(lines)) == 2 and all(lines.count(line) == 5 for line in set(lines))


def test_a_bright_row_is_kept(measured: Any, site: Any) -> None:
    gate = Method(strategy="row").calibrate(measured(), BudgetRequest(keep=(0.25,))).gates[0]
    scores = torch.rand(1, 20)
    scores[0, 10:15] += 1
    scores[0, 3] += 2  # one bright token does not make a bright row
    assert Method.choose(site(gate, 20, (4, 5)))(rows_of(scores)).tolist() == [[10, 11, 12, 13, 14]]


@pytest.mark.parametrize(
    ("options", "request_", "keep"),
    [
        ({}, BudgetRequest(), 5),
        ({}, BudgetRequest(keep=(0.34,)), 6),  # 6.8, rounded down as in the paper
        ({}, BudgetRequest(keep=(0.01,)), 1),
        ({}, BudgetRequest(keep=(0.3,)), 6),  # 0.3 * 20 is slightly below 6 in binary
        ({}, BudgetRequest(keep=(7,)), 7),
        ({}, BudgetRequest(keep=(0.0,)), 0),
        ({}, BudgetRequest(compression=0.66), 7),
        ({"strategy": "row"}, BudgetRequest(keep=(0.74,)), 10),
        ({"strategy": "row"}, BudgetRequest(keep=(0.75,)), 15),
        ({"strategy": "row"}, BudgetRequest(compression=0.4), 10),
        ({"strategy": "row", "row_fill": "rank"}, BudgetRequest(keep=(0.74,)), 14),
        ({"strategy": "row"}, BudgetRequest(keep=(0.0,)), 0),
    ],
)
def test_budgets(options: Any, request_: BudgetRequest, keep: int, measured: Any, site: Any) -> None:
    schedule = Method(**options).calibrate(measured(), request_)
    (gate,) = schedule.gates
    assert (gate.layer, gate.kind, gate.keep) == (0, "vision", keep)
    assert schedule.positions == "original" and schedule.budget.average_tokens == keep
    assert Method.choose(site(gate, 20, (4, 5)))(rows_of(torch.rand(2, 20))).shape == (2, keep)


def test_published_budgets(measured: Any) -> None:
    """On a 24 x 24 grid, both strategies keep the same number of tokens at these shares."""
    for share, tokens in ((0.75, 432), (0.5, 288), (0.25, 144)):
        for strategy in ("rank", "row"):
            schedule = Method(strategy=strategy).calibrate(measured(32, (24, 24)), BudgetRequest(keep=(share,)))
            assert schedule.gates[0].keep == tokens
    assert Method().calibrate(measured(32, (24, 24)), BudgetRequest(keep=(0.002,))).gates[0].keep == 1


def test_the_direction_is_checked_on_calibration_images(measured: Any) -> None:
    good = measured(change=[0.1] * 16)
    assert Method().calibrate(good, BudgetRequest()).calibration["samples"] == 8
    assert "not checked" in Method().calibrate(measured(), BudgetRequest()).calibration["note"]
    variance = good.encoder_variance.copy()
    variance[3] = (1e-6, 1e-6)
    bad = replace(good, encoder_variance=variance)
    with pytest.raises(BadSchedule, match="on 1 of 8 calibration images.*use --direction auto"):
        Method().calibrate(bad, BudgetRequest())
    assert Method(direction="auto").calibrate(bad, BudgetRequest()).calibration["variance_given"][3] == 1e-6
    assert "not at the score layer -1" in Method(score_layer=-1).calibrate(bad, BudgetRequest()).calibration["note"]


@pytest.mark.parametrize("opset", [20, 23])
def test_onnx_of_every_option(opset: int, measured: Any, site: Any, random_rows: Any, exported_slots: Any) -> None:
    """Integer scores with ties, and a map with sinks: ONNX gives the same slots, and all sizes are static."""
    methods = [
        Method(),
        Method(score_layer=-1, direction="auto"),
        Method(strategy="row"),
        Method(strategy="row", row_fill="rank", direction="auto"),
        Method(),
    ]
    shares = [0.35, 0.35, 0.5, 0.7, 0.5]
    gates = [
        m.calibrate(measured(), BudgetRequest(keep=(share,))).gates[0] for m, share in zip(methods, shares, strict=True)
    ]
    selectors: list[Selector] = [Method.choose(site(gate, 20, (4, 5))) for gate in gates]
    fed = [random_rows(20, seed=i) for i in range(len(gates))]
    sinks = torch.full((7, 20), 1e-4)
    sinks[:, [2, 11]] = 40
    sinks += torch.rand(7, 20, generator=torch.Generator().manual_seed(0)) * 1e-3
    fed[-1].read["received.-2"] = sinks
    counts = [gate.keep for gate in gates]
    got = exported_slots(selectors, fed, counts, opset)
    assert counts == [7, 7, 10, 14, 10]
    for selector, rows, slots in zip(selectors, fed, got.outputs, strict=True):
        np.testing.assert_array_equal(slots, selector(rows).numpy())
    model = onnx.helper.make_model(got.graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    for value in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info:
        for dim in value.type.tensor_type.shape.dim[1:]:
            assert dim.HasField("dim_value") or dim.dim_param == "S", value
    assert len(got.graph.node) < 120


def test_images_of_a_batch_are_independent(demo: Family) -> None:
    """Each image (or tile) of a batch is pruned independently."""
    pixels = torch.randn(3, 3, *demo.bucket, generator=torch.Generator().manual_seed(0))
    vision = demo.vision(("received.-2", "given.-2"))
    for selector in (FocalSelector(40, -2, False, None), FocalSelector(36, -2, True, demo.layout.grid)):
        found = []
        for images in (pixels, *pixels.split(1)):
            features, received, given_ = vision(images)
            rows = rows_of(received, given_)._replace(hidden_states=features)
            found.append(selector.kept(rows)[1])
        torch.testing.assert_close(found[0], torch.cat(found[1:]), rtol=1e-4, atol=1e-4)
        assert not torch.equal(selector(rows_of(*vision(pixels)[1:]))[0], selector(rows_of(*vision(pixels)[1:]))[1])


def test_kept_rows_are_gathered() -> None:
    rows = rows_of(torch.rand(2, 12))
    selector = FocalSelector(5, -2, False, None)
    slots, kept = selector.kept(rows)
    assert torch.equal(slots, selector(rows)) and torch.equal(kept, gather(rows.vision, slots))
    assert all(torch.equal(kept[i], rows.vision[i, slots[i]]) for i in range(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_layer": 0}, "score_layer 0 must be below 0"),
        ({"row_fill": "rank"}, "use --strategy row"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSchedule, match=message):
        Method(**options)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (BudgetRequest(layers=(2,)), "--layers 2 does not fit"),
        (BudgetRequest(keep=(0.5, 0.25)), "--keep has 2 values.*give one"),
        (BudgetRequest(keep=(0.5,), compression=0.5), "give one of them"),
        (BudgetRequest(keep=(21,)), "21 tokens of 20"),
        (BudgetRequest(keep=(4,)), "keep 4 is less than one row of 5 tokens"),
    ],
)
def test_bad_requests(asked: BudgetRequest, message: str, measured: Any) -> None:
    with pytest.raises(BadSchedule, match=message):
        Method(strategy="row").calibrate(measured(), asked)


@pytest.mark.parametrize(
    ("selector", "keep", "message"),
    [
        ({"strategy": "column"}, 5, "selector of a fopru gate: strategy 'column' is not known; use one of rank, row"),
        ({"direction": "both"}, 5, "direction 'both'"),
        ({"row_fill": 1}, 5, "row_fill is 1"),
        ({"row_fill": "rank"}, 5, "use --strategy row"),
        ({"score_layer": 1}, 5, "selector of a fopru gate: score_layer 1 must be below 0"),
        ({"score_layer": "x"}, 5, "score_layer is 'x'"),
        ({"strategy": "row"}, 7, "keep 7 of a fopru gate is not a whole number of rows of 5"),
    ],
)
def test_bad_selector_block(selector: dict[str, Any], keep: int, message: str, site: Any) -> None:
    with pytest.raises(BadSchedule, match=message):
        Method.choose(site(Gate(0, keep, "vision", selector), 20, (4, 5)))
    with pytest.raises(BadSchedule, match="needs the whole image, 20 tokens, not 15"):
        Method.choose(site(Gate(0, 5, "vision", {"strategy": "row"}), 15, (4, 5)))


def test_all_or_nothing_is_a_constant(site: Any) -> None:
    assert isinstance(Method.choose(site(Gate(0, 0, "vision"), 20, (4, 5))), Fixed)
