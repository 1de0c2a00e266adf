# SPDX-License-Identifier: Apache-2.0
"""Scores and thin projections of ALVTS against plain loops and transformers' layers, in torch and in ONNX."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model, Qwen3Config, Qwen3Model

from secateur.bundle.schedule import Gate
from secateur.decoder.pieces import LlamaProjections
from secateur.errors import BadSchedule
from secateur.methods.alvts import Method
from secateur.selection import low_rank
from secateur.selection.low_rank import LowRankSelector, Thin, importance, tensor_name
from secateur.selection.selector import Fixed, GateInputs, GateSite
from tests.model_fixtures.gates import HEAD_DIM, HEADS, KV_HEADS, START, WIDTH, dimensions

Floats = NDArray[np.float64]
TOKENS = 5
PLACE = dimensions(2)
MODELS: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaModel, LlamaConfig),
    "qwen2": (Qwen2Model, Qwen2Config),
    "qwen3": (Qwen3Model, Qwen3Config),
}


def plain_importance(
    query: Floats, key: Floats, mask: NDArray[np.int64], start: int, count: int, score: str
) -> list[list[float]]:
    """Compute equations 4 to 6 as printed, in loops: every row is a query, means instead of sums."""
    heads, kv_heads, rows = query.shape[1], key.shape[1], query.shape[2]
    vision = range(start, start + count)
    out = []
    for b in range(len(query)):
        text = [r for r in range(rows) if r not in vision and mask[b, r]]
        attention = np.zeros((rows, rows))
        for h in range(heads):
            for r in range(rows):
                seen = [c for c in range(r + 1) if mask[b, c]]
                logits = [
                    float(query[b, h, r] @ key[b, h // (heads // kv_heads), c]) / math.sqrt(query.shape[3])
                    for c in seen
                ]
                top = max(logits, default=0.0)
                weights = [math.exp(x - top) for x in logits]
                for c, weight in zip(seen, weights, strict=True):
                    attention[r, c] += weight / sum(weights) / heads
        by_vision = [sum(attention[j, i] for j in vision) / count for i in vision]
        by_text = [sum(attention[j, i] for j in text) / len(text) for i in vision]
        product = [a * b for a, b in zip(by_vision, by_text, strict=True)]
        out.append({"product": product, "v2v": by_vision, "t2v": by_text}[score])
    return out


def plain_heads(rows: Floats, positions: NDArray[np.int64], heads: int, theta: float = 10000.0) -> Floats:
    """Split rows [S, heads * dh] into heads [heads, S, dh] with rotary positions."""
    split = rows.reshape(len(rows), heads, -1)
    half = split.shape[2] // 2
    out = np.zeros_like(split)
    for s, position in enumerate(positions):
        for i in range(half):
            angle = position / theta ** (i / half)
            one, two = split[s, :, i], split[s, :, i + half]
            out[s, :, i] = one * math.cos(angle) - two * math.sin(angle)
            out[s, :, i + half] = two * math.cos(angle) + one * math.sin(angle)
    return out.transpose(1, 0, 2)


def projections(kind: str = "llama", dtype: torch.dtype = torch.float32, std: float = 0.5) -> LlamaProjections:
    """Return the projections of a random layer."""
    model_class, config = MODELS[kind]
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": 16,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config(**sizes))
        for weight in model.parameters():
            weight.data = weight.data.normal_(std=std).to(dtype)
    model.requires_grad_(False)
    return LlamaProjections(model.layers[1], model.rotary_emb)


def site_of(
    kept: int, layer: LlamaProjections, rank: int, score: str = "product", tokens: int = TOKENS, **tensors: Any
) -> GateSite:
    """Return a site with the tensors of the plain decomposition, except for `tensors`."""
    factors = low_rank.svd(layer, rank)._asdict()
    named = {tensor_name(1, part): tensors.get(part, factor.numpy()) for part, factor in factors.items()}
    gate = Gate(1, kept, "route", {"rank": rank, "score": score})
    return GateSite(gate, tokens, START, (1, tokens), PLACE, named, layer)


def rows_of(seed: int, rows: int = START + TOKENS + 3, batch: int = 2) -> GateInputs:
    """Return random rows; the last sample is padded by one row, and positions have a gap after the image."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, rows, WIDTH, generator=generator)
    mask = torch.ones(batch, rows, dtype=torch.int64)
    mask[-1, -1] = 0
    positions = torch.arange(rows) + 3 * (torch.arange(rows) >= START + TOKENS)
    index = torch.arange(TOKENS).repeat(batch, 1)
    return GateInputs(hidden, positions.repeat(batch, 1), mask, index, START, {})


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**16),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (3, 3)]),
    start=st.integers(0, 3),
    count=st.integers(1, 6),
    tail=st.integers(1, 4),
    score=st.sampled_from(["product", "v2v", "t2v"]),
    data=st.data(),
)
def test_importance_equals_loops(
    seed: int, heads: tuple[int, int], start: int, count: int, tail: int, score: str, data: st.DataObject
) -> None:
    rows, rng = start + count + tail, np.random.default_rng(seed)
    query, key = (rng.normal(size=(2, h, rows, 4)).round(1) * 2 for h in heads)
    mask = np.ones((2, rows), np.int64)
    mask[1, rows - data.draw(st.integers(0, tail - 1)) :] = 0
    got = importance(torch.tensor(query).half(), torch.tensor(key).half(), torch.tensor(mask), start, count, score)
    exact_query, exact_key = (x.astype(np.float16).astype(np.float64) for x in (query, key))
    want = np.array(plain_importance(exact_query, exact_key, mask, start, count, score))
    assert got.dtype == torch.float32
    ratio = got.double().numpy() / want  # sums in place of means: one factor a sample
    np.testing.assert_allclose(ratio, ratio[:, :1].repeat(count, 1), rtol=1e-4)


@pytest.mark.parametrize("score", ["product", "v2v", "t2v"])
def test_selector_equals_loops(score: str) -> None:
    """The whole gate: norm, thin weights, grouped heads, RoPE, scores, and the k best tokens."""
    layer, rows = projections(), rows_of(0)
    selector = Method.choose(site_of(3, layer, 8, score))
    assert isinstance(selector, LowRankSelector)
    hidden = rows.hidden_states.double().numpy()
    normalized = (
        hidden
        / np.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-6)
        * layer.norm.get_parameter("weight").double().numpy()
    )
    weights = []
    for weight in (layer.query, layer.key):
        u, s, v = np.linalg.svd(weight.double().numpy(), full_matrices=False)
        weights.append(u[:, :8] * s[:8] @ v[:8])
    query, key = (
        np.stack([plain_heads(n @ w.T, p, heads) for n, p in zip(normalized, rows.position_ids.numpy(), strict=True)])
        for w, heads in zip(weights, (HEADS, KV_HEADS), strict=True)
    )
    want = np.array(plain_importance(query, key, rows.attention_mask.numpy(), START, TOKENS, score))
    got = selector.importance(rows).double().numpy()
    np.testing.assert_allclose(got / got.sum(1, keepdims=True), want / want.sum(1, keepdims=True), rtol=1e-4)
    chosen = [sorted(range(TOKENS), key=lambda i, s=s: (-s[i], i))[:3] for s in want]  # type: ignore[misc]
    assert selector(rows).tolist() == [sorted(each) for each in chosen]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_full_rank_equals_the_layer(kind: str) -> None:
    layer, rows = projections(kind), rows_of(1)
    selector = LowRankSelector(site_of(2, layer, 64), Thin(64, "product"))
    exact = low_rank.queries_and_keys(None, layer, rows.hidden_states, rows.position_ids)
    truth = importance(*exact, rows.attention_mask, START, TOKENS)
    torch.testing.assert_close(selector.importance(rows), truth, rtol=1e-4, atol=1e-6)
    thin = LowRankSelector(site_of(2, layer, 4), Thin(4, "product")).importance(rows)
    assert not torch.allclose(thin, truth, rtol=1e-2)


def test_decomposition_is_the_best_of_its_rank() -> None:
    layer = projections()
    factors = low_rank.svd(layer, 5)
    assert [tuple(f.shape) for f in factors] == [(10, WIDTH), (HEADS * HEAD_DIM, 5), (KV_HEADS * HEAD_DIM, 5)]
    for weight, up, down in (
        (layer.query, factors.query_up, factors.down[:5]),
        (layer.key, factors.key_up, factors.down[5:]),
    ):
        rest = torch.linalg.svdvals(weight)[5:].square().sum().sqrt()
        torch.testing.assert_close(torch.linalg.norm(weight - up @ down), rest, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1), rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing() -> None:
    layer, rows = projections(), rows_of(2)
    selector = LowRankSelector(site_of(2, layer, 8), Thin(8, "product"))
    length = rows.hidden_states.shape[1]
    together = selector.importance(rows)
    for i in (0, 1):
        hidden, positions, mask = (tensor[i : i + 1, : length - i] for tensor in rows[:3])
        short = GateInputs(hidden, positions, mask, rows.vision_index[:1], START, {})
        torch.testing.assert_close(selector.importance(short)[0], together[i], rtol=1e-5, atol=1e-7)


def test_fp16_rows_are_scored_in_fp32() -> None:
    layer, rows = projections(), rows_of(3)
    selector = LowRankSelector(site_of(2, layer, 8), Thin(8, "product"))
    halved = rows._replace(hidden_states=rows.hidden_states.half())
    score = selector.importance(halved)
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, selector.importance(rows), rtol=2e-2, atol=1e-3)


def test_product_score_is_zero_without_text_after_the_image() -> None:
    rows = rows_of(4, rows=START + TOKENS, batch=1)
    mask, layer = torch.ones_like(rows.attention_mask), projections()
    query, key = low_rank.queries_and_keys(None, layer, rows.hidden_states, rows.position_ids)
    assert not importance(query, key, mask, START, TOKENS).any()
    assert importance(query, key, mask, START, TOKENS, "v2v").all()


@pytest.mark.parametrize("kept", [0, TOKENS])
def test_all_or_none_need_no_scores(kept: int) -> None:
    selector = Method.choose(GateSite(Gate(1, kept, "route"), TOKENS, START, (1, TOKENS), PLACE))
    assert isinstance(selector, Fixed)
    assert selector(rows_of(0)).tolist() == [list(range(kept))] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank 0"),
        ({"rank": "8"}, "rank is '8'"),
        ({"rank": 7}, "layer_01.down"),
        ({"score": "mean"}, "score 'mean'"),
    ],
)
def test_bad_parameters(change: dict[str, Any], message: str) -> None:
    place = site_of(2, projections(), 8)
    gate = Gate(1, 2, "route", {**place.gate.selector, **change})
    with pytest.raises(BadSchedule, match=message):
        Method.choose(GateSite(gate, TOKENS, START, (1, TOKENS), PLACE, place.tensors, place.projections))


def test_bad_tensors() -> None:
    layer = projections()
    with pytest.raises(BadSchedule, match="layer_01.key_up"):
        Method.choose(site_of(2, layer, 8, key_up=np.full((KV_HEADS * HEAD_DIM, 8), np.nan)))
    place = site_of(2, layer, 8)
    with pytest.raises(BadSchedule, match="no tensor 'layer_01.down'"):
        Method.choose(GateSite(place.gate, TOKENS, START, (1, TOKENS), PLACE, {}, layer))
    with pytest.raises(BadSchedule, match="kind 'route'"):
        Method.choose(GateSite(place.gate, TOKENS, START, (1, TOKENS), PLACE, place.tensors))


@pytest.mark.parametrize(
    ("dtype", "opset", "asked"),
    [(torch.float32, 23, (("qwen2", "v2v"), ("qwen3", "product"))), (torch.float16, 20, (("llama", "product"),))],
    ids=["fp32", "fp16"],
)
def test_onnx_chooses_the_same(
    dtype: torch.dtype, opset: int, asked: tuple[tuple[str, str], ...], random_rows: Any, exported_slots: Any
) -> None:
    """With padding, positions with a gap, three kinds of layers, fp32 and fp16; and the graph stays thin."""
    tokens, keep, rank = 20, 7, 6
    selectors = [
        Method.choose(site_of(keep, projections(kind, dtype, std=1), rank, score, tokens)) for kind, score in asked
    ]
    fed = []
    for seed in range(len(selectors)):
        rows = random_rows(tokens, seed=seed)
        positions = rows.position_ids + 5 * (rows.position_ids >= START + tokens)
        mask = rows.attention_mask.clone()
        mask[2, -4:] = 0
        hidden = rows.hidden_states.to(dtype)
        fed.append(rows._replace(hidden_states=hidden, position_ids=positions, attention_mask=mask))
    got = exported_slots(selectors, fed, [keep] * len(selectors), opset)
    for selector, rows, slots in zip(selectors, fed, got.outputs, strict=True):
        np.testing.assert_array_equal(slots, selector(rows).numpy())
        assert len(np.unique(slots, axis=0)) > 3  # samples differ
    # A gate contains neither the layer's own weights nor the product of the thin ones.
    shapes = [tuple(tensor.dims) for tensor in got.graph.initializer]
    # As many keys as columns: three of the four thin weights have one shape.
    assert sum(shape in ((rank, WIDTH), (WIDTH, rank)) for shape in shapes) == 3 * len(selectors)
    assert not {(HEADS * HEAD_DIM, WIDTH), (WIDTH, HEADS * HEAD_DIM)} & set(shapes)
    # Four thin products and the scores; a bias may be merged into its product.
    products = sum(node.op_type in ("MatMul", "Gemm") for node in got.graph.node)
    assert products == 5 * len(selectors)
    assert len(got.graph.node) < 90 * len(selectors)
