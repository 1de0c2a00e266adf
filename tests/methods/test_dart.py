# SPDX-License-Identifier: Apache-2.0
"""DART against plain loops: pivots, shares, and the least alike."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from secateur.bundle.schedule import Gate
from secateur.errors import BadSchedule
from secateur.methods.dart import LeastAlike, Method, Pivots, shares
from secateur.selection.budget import BudgetRequest
from secateur.selection.selector import Fixed, GateInputs
from tests.model_fixtures.gates import ROWS, START

LLAVA = (32, (24, 24))


def dart(
    norms: NDArray[np.float32], features: NDArray[np.float32], mask: list[int], tokens: int, keep: int, p: Pivots
) -> list[int]:
    """Return the kept slots of one sample; norms and features are rows [S, C] of head, image and question."""
    end = START + tokens

    def largest(rows: list[int], count: int) -> list[int]:
        return sorted(rows, key=lambda r: (-float(np.abs(norms[r]).sum()), r))[:count]

    image = largest(list(range(START, end)), min(p.image_pivots, keep))
    after = [r for r in range(end, len(mask)) if mask[r]]
    text = largest(after + (list(range(START)) if p.text == "all" else []), p.text_pivots)
    text += text[:1] * (min(p.text_pivots, end) - len(text))
    chosen, left = list(image), keep - len(image)
    for i, pivot in enumerate(image + text):
        take = math.ceil(left / (len(image + text) - i))
        free = [r for r in range(START, end) if r not in chosen]
        alike = {r: np.dot(features[pivot], features[r]) / max(np.linalg.norm(features[r]), 1e-12) for r in free}
        chosen += sorted(free, key=lambda r: (alike[r], r))[:take]
        left -= take
    return sorted(r - START for r in chosen)


def whole(rows: GateInputs, rng: np.random.Generator) -> GateInputs:
    """Return rows of small integers, so that norms and similarities are exact and tie."""
    return rows._replace(hidden_states=torch.tensor(rng.integers(-1, 2, rows.hidden_states.shape)).float())


def expected(rows: GateInputs, keep: int, p: Pivots) -> list[list[int]]:
    tokens, out = rows.vision_index.shape[1], []
    for b in range(len(rows.vision_index)):
        taken = {"key": rows.read["key"][:, b].flatten(1).numpy(), "hidden": rows.hidden_states[b].numpy()}
        out.append(dart(taken[p.norms], taken[p.features], rows.attention_mask[b].tolist(), tokens, keep, p))
    return out


@pytest.mark.parametrize("integers", [True, False], ids=["ties", "normal"])
def test_fuzz(integers: bool, site: Any, random_rows: Any) -> None:
    rng = np.random.default_rng(0)
    for seed in range(150):
        tokens = int(rng.integers(2, 27))
        keep = int(rng.integers(1, tokens))
        options = {n: str(rng.choice(["key", "hidden"])) for n in ("norms", "features")}
        pivots = Pivots(
            int(rng.integers(0, 6)), int(rng.integers(1, 6)), str(rng.choice(["question", "all"])), **options
        )
        rows = random_rows(tokens, batch=3, seed=seed, whole=integers)
        rows = whole(rows, rng) if integers else rows
        got = LeastAlike(pivots, site(Gate(3, keep), tokens, (1, tokens)))(rows).tolist()
        assert got == expected(rows, keep, pivots), (seed, pivots, tokens, keep)


@given(st.integers(0, 600), st.integers(1, 12))
def test_shares(count: int, pivots: int) -> None:
    parts = shares(count, pivots)
    assert sum(parts) == count and len(parts) == pivots
    assert list(parts) == sorted(parts, reverse=True) and parts[0] - parts[-1] <= 1
    assert parts[0] == math.ceil(count / pivots)


def test_released_sizes() -> None:
    assert shares(128 - 4, 8) == (16, 16, 16, 16, 15, 15, 15, 15)


def test_fewer_kept_than_image_pivots(site: Any, random_rows: Any) -> None:
    """Only the image pivots with the largest norms are kept."""
    rows = random_rows(12, batch=2, seed=4)
    norm = rows.read["key"][START : START + 12].abs().sum((2, 3)).T.tolist()
    first = [sorted(sorted(range(12), key=lambda i: (-n[i], i))[:3]) for n in norm]
    assert LeastAlike(Pivots(), site(Gate(3, 3), 12, (3, 4)))(rows).tolist() == first
    assert LeastAlike(Pivots(image_pivots=3), site(Gate(3, 3), 12, (3, 4)))(rows).tolist() == first


def test_fewer_text_rows_than_text_pivots(site: Any, random_rows: Any) -> None:
    """Two rows follow the image, one if the last is padding: the first pivot is repeated."""
    tokens = ROWS - START - 2
    rows = random_rows(tokens, batch=3, seed=5, whole=False)
    for text, keep in ((4, 9), (40, 25)):
        pivots = Pivots(2, text)
        got = LeastAlike(pivots, site(Gate(3, keep), tokens, (1, tokens)))(rows).tolist()
        assert got == expected(rows, keep, pivots)


def test_more_text_pivots_than_the_shortest_prompt_has_rows(site: Any, random_rows: Any) -> None:
    rows = random_rows(4, batch=2, seed=6, whole=False)
    short = rows._replace(
        hidden_states=rows.hidden_states[:, : START + 5],
        attention_mask=torch.ones_like(rows.attention_mask[:, : START + 5]),
        read={"key": rows.read["key"][: START + 5]},
    )
    selector = LeastAlike(Pivots(0, 40), site(Gate(3, 2), 4, (2, 2)))
    assert selector(short).tolist() == expected(short, 2, Pivots(0, 40))


def test_padded_rows_and_vision_rows_are_no_text_pivots(site: Any, random_rows: Any) -> None:
    rows = random_rows(12, batch=2, seed=7, whole=False)
    selector = LeastAlike(Pivots(0, 1, "all", features="key"), site(Gate(3, 5), 12, (3, 4)))
    plain = selector(rows)
    rows.read["key"][-1, -1] = 1e3  # padding
    assert torch.equal(selector(rows), plain)
    rows.attention_mask[-1, -1] = 1
    assert not torch.equal(selector(rows), plain)


def test_text_before_the_image_counts_only_if_asked(site: Any, random_rows: Any) -> None:
    rows = random_rows(12, batch=2, seed=8, whole=False)
    question, every = (LeastAlike(Pivots(0, 2, text), site(Gate(3, 5), 12, (3, 4))) for text in ("question", "all"))
    plain = question(rows), every(rows)
    rows.read["key"][1] *= 100
    assert torch.equal(question(rows), plain[0]) and not torch.equal(every(rows), plain[1])


def test_before_the_decoder(measured: Any, site: Any, random_rows: Any) -> None:
    """At layer 0 only hidden states can be read; keys are refused, in a request and in a schedule."""
    method = Method(norms="hidden", features="hidden")
    gate = method.calibrate(measured(), BudgetRequest(layers=(0,), keep=(7,))).gates[0]
    selector = Method.choose(site(gate, 20, (4, 5)))
    assert (gate.layer, selector.reads) == (0, ())
    rows = random_rows(20, batch=3, seed=9)
    assert selector(rows).tolist() == expected(rows, 7, Pivots(norms="hidden", features="hidden"))
    with pytest.raises(BadSchedule, match="layer 0 has no keys to read; use --norms hidden --features hidden"):
        Method(norms="hidden", features="key").calibrate(measured(), BudgetRequest(layers=(0,)))
    with pytest.raises(BadSchedule, match="layer 0 has no keys to read"):
        Method.choose(site(Gate(0, 7), 20, (4, 5)))


def test_published_defaults(measured: Any, site: Any) -> None:
    schedule = Method().calibrate(measured(*LLAVA), BudgetRequest())
    gate = schedule.gates[0]
    assert (gate.layer, gate.keep, len(schedule.gates)) == (2, 128, 1)
    assert gate.selector == {
        "image_pivots": 4,
        "text_pivots": 4,
        "text": "question",
        "norms": "key",
        "features": "hidden",
    }
    assert Method.choose(site(gate, 576, (24, 24))).reads == ("key",)
    for average in (192, 128, 64):
        asked = Method().calibrate(measured(*LLAVA), BudgetRequest(compression=1 - average / 576))
        assert asked.gates[0].layer == 2 and asked.budget.average_tokens == pytest.approx(average, abs=1)
    assert [g.layer for g in Method().calibrate(measured(4), BudgetRequest()).gates] == [1]


@pytest.mark.parametrize("keep", [0, 20])
def test_all_or_nothing(keep: int, site: Any, random_rows: Any) -> None:
    selector = Method.choose(site(Gate(3, keep), 20, (4, 5)))
    assert isinstance(selector, Fixed)
    assert torch.equal(selector(random_rows(20, batch=2)), torch.arange(keep).expand(2, -1))


def test_onnx_of_the_options(site: Any, random_rows: Any, exported_slots: Any) -> None:
    options = [Pivots(0, 3, "all", "key", "key"), Pivots(5, 0, "question", "hidden", "hidden"), Pivots(7, 40)]
    selectors = [LeastAlike(p, site(Gate(3, 7), 25, (5, 5))) for p in options]
    fed = [whole(random_rows(25, seed=i), np.random.default_rng(i)) for i in range(len(options))]
    got = exported_slots(selectors, fed, [7] * len(options), 20)
    for pivots, rows, slots in zip(options, fed, got.outputs, strict=True):
        assert slots.tolist() == expected(rows, 7, pivots)
    # Image pivots, text pivots, one for each pivot that has a share, and the order.
    assert sum(node.op_type == "TopK" for node in got.graph.node) == (0 + 1 + 3 + 1) + (1 + 0 + 2 + 1) + (1 + 0 + 0 + 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_pivots": -1}, "image_pivots -1 must be at least 0"),
        ({"text_pivots": -2}, "text_pivots -2 must be at least 0"),
        ({"image_pivots": 0, "text_pivots": 0}, "both 0; give at least one pivot"),
        ({"text": "system"}, "text 'system' is not known; use one of question, all"),
        ({"norms": "value"}, "norms 'value' is not known; use one of key, hidden"),
        ({"features": "value"}, "features 'value' is not known"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str, site: Any) -> None:
    with pytest.raises(BadSchedule, match=message):
        Method(**options)
    with pytest.raises(BadSchedule, match=f"selector of a dart gate: .*{message}"):
        Method.choose(site(Gate(3, 7, selector=options), 20, (4, 5)))
