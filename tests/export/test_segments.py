# SPDX-License-Identifier: Apache-2.0
"""Decoder segments, their attention, and a gate after them."""

from __future__ import annotations

import pytest
import torch

from secateur.decoder import attention
from secateur.export.gates import PruneGate
from secateur.export.graphs import build_graphs, sized_model
from secateur.export.segments import Rotary, Segment
from secateur.export.spans import Spans, ViewSpan
from secateur.export.targets import Target, target
from secateur.families.base import Family
from secateur.selection.selector import GateInputs, Selector


@pytest.fixture
def decomposed() -> Target:
    return target("tensorrt", "fp32")


def positions(batch: int, rows: int, past: int = 0) -> torch.Tensor:
    return torch.arange(past, past + rows).repeat(batch, 1)


def inputs(family: Family, batch: int, rows: int, past: int, layers: int) -> list[torch.Tensor]:
    d = family.dimensions
    made = [
        torch.randn(batch, rows, d.width),
        *Rotary(family.decoder, torch.float32)(positions(batch, rows, past)),
        torch.ones(batch, past + rows, dtype=torch.int64),
        torch.full((batch,), rows - 1),
    ]
    return made + [torch.randn(past, batch, d.kv_heads, d.head_dim) for _ in range(2 * layers)]


@pytest.mark.parametrize(("batch", "rows", "past"), [(1, 7, 0), (2, 5, 3), (3, 1, 4), (1, 1, 0)])
def test_decomposed_attention_equals_the_fused_one(tiny: Family, batch: int, rows: int, past: int) -> None:
    given = inputs(tiny, batch, rows, past, 2)
    given[5:5] = positions(batch, rows, past), torch.tensor([past])
    fused = Segment(tiny.decoder, 0, 2, ("query", "text_query"))(*given)
    spelled = Segment(tiny.decoder, 0, 2, ("query", "text_query"), decomposed=True)(*given)
    for a, b in zip(fused, spelled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_cutting_changes_nothing(tiny: Family) -> None:
    given = inputs(tiny, 2, 6, 0, 4)
    whole = Segment(tiny.decoder, 0, 4)(*given)
    rows, cached = given[0], []
    for first, end in ((0, 1), (1, 3), (3, 4)):
        last = given[4:5] if end == 4 else []
        out = Segment(tiny.decoder, first, end)(rows, *given[1:4], *last, *given[5 + 2 * first : 5 + 2 * end])
        rows = out[0]
        cached += out[1:]
    for a, b in zip(whole, [rows, *cached], strict=True):
        torch.testing.assert_close(a, b)


def test_text_query_is_the_mean_over_the_question(tiny: Family) -> None:
    given = inputs(tiny, 2, 9, 0, 1)
    given[3][1, 7:] = 0  # padding of the second sample
    tap = attention.Tap()
    segment = Segment(tiny.decoder, 0, 1, ("text_query",))
    found = segment(*given[:4], positions(2, 9), torch.tensor([4]), *given[5:])[-1]
    mask = attention.additive_mask(given[3], 9, 0, torch.float32)
    decoder = tiny.decoder
    with attention.active(decoder.config):
        position_embeddings = decoder.rotary(given[0], positions(2, 9))
        decoder.layers[0](
            given[0], attention_mask=mask, position_embeddings=position_embeddings, past_key_values=tap, tap=tap
        )
    assert tap.query is not None
    torch.testing.assert_close(found[0], tap.query[0, :, 4:9].mean(dim=1))
    torch.testing.assert_close(found[1], tap.query[1, :, 4:7].mean(dim=1))


def test_the_attention_setting_is_put_back(tiny: Family) -> None:
    config = tiny.decoder.config
    before = config._attn_implementation
    with pytest.raises(RuntimeError), attention.active(config):
        assert config._attn_implementation == attention.NAME
        raise RuntimeError
    assert config._attn_implementation == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_masks_stay_finite(dtype: torch.dtype) -> None:
    mask = attention.additive_mask(torch.zeros(1, 5, dtype=torch.int64), 3, 2, dtype)
    assert torch.isfinite(mask).all()
    assert torch.isfinite(torch.softmax(mask, dim=-1)).all()


class Fixed(Selector):
    """Keeps given slots."""

    def __init__(self, slots: list[list[int]]) -> None:
        super().__init__()
        self.slots = torch.tensor(slots)

    def forward(self, rows: GateInputs) -> torch.Tensor:
        return self.slots


def test_gates_gather_rows_positions_masks_and_indices() -> None:
    rows = torch.arange(2 * 9 * 2, dtype=torch.float32).reshape(2, 9, 2)
    positions, mask = torch.arange(9).repeat(2, 1), torch.ones(2, 9, dtype=torch.int64)
    mask[1, 8] = 0
    index = torch.tensor([[10, 20, 30, 40], [11, 21, 31, 41]])
    gate = PruneGate([Fixed([[0, 3], [1, 2]])], Spans((ViewSpan(3, 4, 0),)))
    hidden, where, valid, kept = gate(rows, positions, mask, index)
    chosen = [[0, 1, 2, 3, 6, 7, 8], [0, 1, 2, 4, 5, 7, 8]]
    for b in range(2):
        assert torch.equal(hidden[b], rows[b, chosen[b]])
        assert torch.equal(where[b], positions[b, chosen[b]])
        assert torch.equal(valid[b], mask[b, chosen[b]])
    assert kept.tolist() == [[10, 40], [21, 31]]


def test_interfaces_agree_with_the_modules(tiny: Family, decomposed: Target) -> None:
    for graph in build_graphs([sized_model(tiny, tiny.layout, [])], decomposed):
        outputs = graph.module(*graph.example())
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for spec, tensor in zip(graph.spec.outputs, outputs, strict=True):
            assert str(tensor.dtype) == f"torch.{spec.dtype}", spec.name
            sizes = {"B": 2, "S": graph.rows, "T": 5, "n": 5}
            assert tuple(tensor.shape) == tuple(d if isinstance(d, int) else sizes[d] for d in spec.shape), spec.name
