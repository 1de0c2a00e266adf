# SPDX-License-Identifier: Apache-2.0
"""Attention of the last row, or of all rows on average, against plain loops and transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from secateur.bundle.schedule import Gate
from secateur.families.llava import Family
from secateur.selection.attention import Attended, attention_logits, attention_softmax
from secateur.selection.selector import GateInputs, GateSite
from tests.model_fixtures.gates import START
from tests.reference import masked_run


def best(score: Sequence[float], count: int) -> list[int]:
    return sorted(sorted(range(len(score)), key=lambda i: (-score[i], i))[:count])


def last_row(query: NDArray[Any], key: NDArray[Any], mask: Sequence[int]) -> list[float]:
    """Return the mean over heads of softmax(q.k / sqrt(dh)): query [H, dh], key [S, Hkv, dh] -> S values."""
    heads, width = query.shape
    share = heads // key.shape[1]
    total = [0.0] * len(key)
    for h in range(heads):
        logits = [float(np.dot(query[h], key[s, h // share])) / math.sqrt(width) for s in range(len(key))]
        top = max(value for value, valid in zip(logits, mask, strict=True) if valid)
        powers = [math.exp(value - top) if valid else 0.0 for value, valid in zip(logits, mask, strict=True)]
        total = [t + p / sum(powers) / heads for t, p in zip(total, powers, strict=True)]
    return total


def every_row(queries: NDArray[Any], key: NDArray[Any], mask: Sequence[int]) -> list[float]:
    """Return the mean of `last_row` over all valid rows as the last row: queries [S, H, dh] -> S values."""
    total = [0.0] * len(key)
    valid = [r for r in range(len(key)) if mask[r]]
    for r in valid:
        seen = [int(mask[s] and s <= r) for s in range(len(key))]
        total = [t + p / len(valid) for t, p in zip(total, last_row(queries[r], key, seen), strict=True)]
    return total


def oracle(rows: GateInputs, query: str, keep: int) -> list[list[int]]:
    """Return the kept slots of each sample."""
    tokens, out = rows.vision_index.shape[1], []
    for b in range(len(rows.vision_index)):
        key, mask = rows.read["key"][:, b].double().numpy(), rows.attention_mask[b].tolist()
        if query == "last":
            score = last_row(rows.read["query"][b].double().numpy(), key, mask)
        else:
            score = every_row(rows.read["queries"][:, b].double().numpy(), key, mask)
        out.append(best(score[START : START + tokens], keep))
    return out


@pytest.mark.parametrize("query", ["last", "all"])
def test_fuzz(query: str, site: Any, random_rows: Any) -> None:
    rng = np.random.default_rng(0)
    for seed in range(25 if query == "last" else 8):
        tokens = int(rng.integers(2, 20))
        keep = int(rng.integers(1, tokens))
        rows = random_rows(tokens, batch=3, seed=seed, whole=False)
        got = Attended(site(Gate(2, keep), tokens, (1, tokens)), query)(rows).tolist()
        assert got == oracle(rows, query, keep), seed


def test_equal_tokens_tie_to_the_lower_index(site: Any, random_rows: Any) -> None:
    rows = random_rows(12, batch=2, seed=1)
    rows.read["key"][START + 6 : START + 12] = rows.read["key"][START : START + 6]
    got = Attended(site(Gate(2, 7), 12, (3, 4)))(rows)
    assert got.tolist() == oracle(rows, "last", 7)
    chosen = set(got[0].tolist())
    assert all(slot - 6 in chosen for slot in chosen if slot >= 6)


@pytest.mark.parametrize("query", ["last", "all"])
def test_padding_gets_and_pays_no_attention(query: str, site: Any, random_rows: Any) -> None:
    rows = random_rows(12, batch=2, seed=2, whole=False)
    selector = Attended(site(Gate(2, 5), 12, (3, 4)), query)
    expected = selector(rows)
    rows.read["key"][-1, -1] = 1e4  # padding
    rows.read["queries"][-1, -1] = 1e4
    assert torch.equal(selector(rows), expected)


def test_last_row_and_average_are_two_scores(site: Any, random_rows: Any) -> None:
    rows = random_rows(12, batch=4, seed=3, whole=False)
    last, average = (Attended(site(Gate(2, 5), 12, (3, 4)), query)(rows) for query in ("last", "all"))
    assert not torch.equal(last, average)


@pytest.mark.parametrize("layer", [1, 3])
def test_scores_are_those_of_transformers(layer: int) -> None:
    """A gate before `layer` keeps the best tokens by the attention probabilities that transformers returns."""
    family, layout = Family.tiny(), Family.tiny().layout
    pixels = np.random.default_rng(0).normal(size=(1, 3, *family.bucket)).astype(np.float32)
    tail = [9, 11, 8, 6]
    seen = masked_run(family, pixels, tail, {})
    family.model.set_attn_implementation("eager")
    with torch.inference_mode():
        ids = torch.tensor([[*layout.ids(family.image_token_id), *tail]])
        out = family.model(input_ids=ids, pixel_values=torch.from_numpy(pixels), output_attentions=True)
    attention = out.attentions[layer - 1][0].mean(0)[:, layout.image_start : layout.image_start + layout.vision_tokens]

    rows = len(ids[0])
    read = {
        "query": seen.query[layer - 1][:, :, -1],
        "queries": seen.query[layer - 1].permute(2, 0, 1, 3),
        "key": seen.key[layer - 1].permute(2, 0, 1, 3),
    }
    inputs = GateInputs(
        hidden_states=seen.before[layer],
        position_ids=torch.arange(rows)[None],
        attention_mask=torch.ones(1, rows, dtype=torch.int64),
        vision_index=torch.arange(layout.vision_tokens)[None],
        image_start=layout.image_start,
        read=read,
    )
    keep = layout.vision_tokens // 2
    place = GateSite(Gate(layer, keep), layout.vision_tokens, layout.image_start, layout.grid, family.dimensions)
    assert Attended(place)(inputs)[0].tolist() == best(attention[-1].tolist(), keep)
    assert Attended(place, "all")(inputs)[0].tolist() == best(attention.mean(0).tolist(), keep)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_importance_against_numpy(kv_heads: int) -> None:
    rng = np.random.default_rng(0)
    batch, rows, heads, width, start, tokens = 2, 9, 4, 8, 2, 5
    query, key = rng.normal(size=(batch, heads, width)), rng.normal(size=(rows, batch, kv_heads, width))
    mask = np.ones((batch, rows), np.int64)
    mask[1, 7:] = 0
    every = np.repeat(key, heads // kv_heads, axis=2)
    dots = np.einsum("bhd,sbhd->bhs", query, every) / np.sqrt(width)
    q, k = torch.tensor(query, dtype=torch.float32), torch.tensor(key, dtype=torch.float32)

    logits = attention_logits(q, k[start : start + tokens])
    np.testing.assert_allclose(logits, dots.mean(1)[:, start : start + tokens], atol=1e-5)

    powers = np.exp(dots) * mask[:, None, :]
    shares = (powers / powers.sum(-1, keepdims=True)).mean(1)[:, start : start + tokens]
    got = attention_softmax(q, k, torch.tensor(mask), start, tokens)
    np.testing.assert_allclose(got, shares, atol=1e-6)
