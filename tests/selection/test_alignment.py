# SPDX-License-Identifier: Apache-2.0
"""Tuning of the ALVTS selectors: overlap never falls, equal seeds give equal bits, killed runs resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.bundle.layout import Layout
from secateur.bundle.schedule import Schedule
from secateur.bundle.strict_json import to_json
from secateur.errors import BadOutput, BadSchedule
from secateur.methods import alvts
from secateur.selection import alignment, low_rank
from secateur.selection.alignment_state import AlignmentState
from secateur.selection.budget import BudgetRequest
from secateur.selection.low_rank import Factors
from secateur.selection.statistics import LayerRows, Statistics
from tests.model_fixtures.gates import learnable

METHOD = alvts.Method(learning_rate=1e-2)
OPTIONS = alignment.Options(rank=6, score="product", loss="scaled", passes=4, learning_rate=1e-3)
HALF = BudgetRequest(keep=(0.5,))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors are faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small(measured: Callable[..., Statistics], monkeypatch: pytest.MonkeyPatch) -> Statistics:
    """Make statistics of five layers, 20 tokens and 8 samples of several lengths; the rank is below the layers'."""
    monkeypatch.setattr(low_rank, "default_rank", lambda dimensions: 6)
    made: Statistics = measured(5, (4, 5), [0.0] * 5)
    return made


def first_layer(statistics: Statistics) -> LayerRows:
    assert statistics.layers is not None
    return next(statistics.layers())


def contents(schedule: Schedule) -> tuple[str, dict[str, bytes]]:
    return to_json(schedule), {name: np.asarray(x).tobytes() for name, x in schedule.tensors.items()}


def same(one: alignment.Candidates, other: alignment.Candidates) -> bool:
    pairs = [(one.scores, other.scores), (one.truth, other.truth)]
    pairs += [pair for a, b in zip(one.factors, other.factors, strict=True) for pair in zip(a, b, strict=True)]
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("loss", ["scaled", "log"])
def test_tuning_reduces_the_loss(small: Statistics, loss: str) -> None:
    layer = first_layer(small)
    layer = layer._replace(rows=layer.rows[:1])  # a single sample is trained on and measured
    found = alignment.align(layer, small.layout, replace(OPTIONS, loss=loss, passes=40), seed=0)
    before, after = (float(alignment.loss(score, found.truth, loss)) for score in found.scores[[0, -1]])
    assert len(found.factors) == len(found.scores) == 41
    assert after < 0.8 * before


def test_the_loss_does_not_depend_on_the_scale_of_attention() -> None:
    """Equation 11 on raw scores would be about 1e-12 here, too small for Adam."""
    score, truth = torch.rand(2, 3, 7, generator=torch.Generator().manual_seed(0)).unbind()
    want = np.mean([((s - t) / t.mean()).square().mean() for s, t in zip(score, truth, strict=True)])
    for scale in (1.0, 1e-6):
        torch.testing.assert_close(alignment.loss(scale * score, scale * truth, "scaled"), torch.tensor(float(want)))
    zero = alignment.loss(torch.zeros(1, 2, requires_grad=True), torch.rand(1, 2), "log")
    assert torch.isfinite(zero)


def test_same_seed_same_bits(small: Statistics) -> None:
    one, other, third = (alignment.align(first_layer(small), small.layout, OPTIONS, seed) for seed in (3, 3, 4))
    assert same(one, other)
    assert not torch.equal(one.factors[-1].down, third.factors[-1].down)


def test_padding_changes_no_score(small: Statistics) -> None:
    """A sample has the same scores alone and in a batch with longer ones."""
    layer = first_layer(small)
    lengths = {rows.shape[1] for rows in layer.rows}
    assert len(lengths) > 1
    batch = alignment.pad(layer.rows, small.layout)
    assert batch.rows.shape[1] == max(lengths)
    assert batch.attention_mask.sum(1).tolist() == [rows.shape[1] for rows in layer.rows]
    together = alignment.align(layer, small.layout, replace(OPTIONS, passes=0), seed=0)
    _, held_out = alignment.split(len(layer.rows), 0)
    for i, sample in enumerate(held_out):
        alone = LayerRows(0, [layer.rows[sample]], layer.projections)
        found = alignment.align(alone, small.layout, replace(OPTIONS, passes=0), seed=0)
        torch.testing.assert_close(found.truth[0], together.truth[i], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.scores[0, 0], together.scores[0, i], rtol=1e-4, atol=1e-6)


@given(samples=st.integers(0, 70), seed=st.integers(0, 100))
def test_held_out_samples_are_not_trained_on(samples: int, seed: int) -> None:
    training, held_out = alignment.split(samples, seed)
    assert sorted({*training, *held_out}) == list(range(samples))
    assert len(held_out) == min(samples, max(1, samples // 4))
    assert samples < 2 or not set(training) & set(held_out)
    assert [i for part in alignment.batches(training) for i in part] == training


def test_text_must_follow_the_image(small: Statistics) -> None:
    layer = first_layer(small)
    end = small.layout.image_start + small.layout.vision_tokens
    cut = layer._replace(rows=[*layer.rows[:2], layer.rows[2][:, :end]])
    with pytest.raises(BadSchedule, match=rf"sample 2 has {end} rows .* use --score v2v"):
        alignment.align(cut, small.layout, OPTIONS, seed=0)
    found = alignment.align(cut, small.layout, replace(OPTIONS, score="v2v"), seed=0)
    assert bool((found.truth > 0).all())


@settings(max_examples=60)
@given(seed=st.integers(0, 2**16), keep=st.integers(1, 8), passes=st.integers(0, 4))
def test_choice_against_sets(seed: int, keep: int, passes: int) -> None:
    """Check overlap, captured mass and the choice on integer scores, which tie."""
    rng = np.random.default_rng(seed)
    scores, truth = rng.integers(1, 5, (passes + 1, 3, 9)), rng.integers(1, 5, (3, 9))
    factors = [Factors(*torch.full((3, 1, 1), float(i))) for i in range(passes + 1)]
    candidates = alignment.Candidates(factors, torch.tensor(scores).float(), torch.tensor(truth).float())
    chosen = alignment.choose(candidates, keep)

    def top(score: Any) -> set[int]:
        return set(sorted(range(9), key=lambda i: (-score[i], i))[:keep])

    overlap = [
        float(np.mean([len(top(s) & top(t)) / keep for s, t in zip(each, truth, strict=True)])) for each in scores
    ]
    mass = [
        float(np.mean([t[list(top(s))].sum() / t[list(top(t))].sum() for s, t in zip(each, truth, strict=True)]))
        for each in scores
    ]
    np.testing.assert_allclose(chosen.overlap, overlap)
    np.testing.assert_allclose(chosen.mass, mass)
    best = max(range(passes + 1), key=lambda i: (round(overlap[i], 9), -i))
    assert chosen.number == best and chosen.factors is factors[best]
    assert chosen.slots.tolist() == [sorted(top(s)) for s in scores[best]]


def test_jaccard_against_sets() -> None:
    picks = [[[0, 1], [2, 3]], [[1, 2], [2, 3]], [[3, 4], [0, 3]]]
    chosen = [alignment.ChosenCandidate(Factors(*torch.zeros(3, 1, 1)), 0, [], [], np.array(slots)) for slots in picks]
    pairs = [(a, b) for i, a in enumerate(picks) for b in picks[i + 1 :]]
    want = np.mean([len(set(x) & set(y)) / len(set(x) | set(y)) for a, b in pairs for x, y in zip(a, b, strict=True)])
    assert alignment.mean_jaccard(chosen, 5) == pytest.approx(want, abs=1e-6)
    assert alignment.mean_jaccard(chosen[:1], 5) is None


def test_a_killed_calibration_resumes(small: Statistics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = learnable(small)
    whole = METHOD.calibrate(small, HALF)
    assert any(line["passes"] for line in whole.calibration["layers"])
    want, calls = contents(whole), counted(monkeypatch)

    def killed(step: str, done: int, total: int) -> None:
        assert (step, total) == ("align", 5)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        METHOD.calibrate(replace(small, work=tmp_path, progress=killed), HALF)
    assert calls == [0, 1]
    seen: list[int] = []
    again = replace(small, work=tmp_path, progress=lambda step, done, total: seen.append(done))
    assert contents(METHOD.calibrate(again, HALF)) == want
    assert calls == [0, 1, 2, 3, 4] and seen == [2, 3, 4, 5]
    assert contents(METHOD.calibrate(again, HALF)) == want
    assert len(calls) == 5


def test_another_budget_reuses_the_tuning(small: Statistics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = learnable(small)
    kept = replace(small, work=tmp_path)
    few = BudgetRequest(keep=(3,))
    want = contents(METHOD.calibrate(small, few))
    METHOD.calibrate(kept, HALF)
    calls = counted(monkeypatch)
    assert contents(METHOD.calibrate(kept, few)) == want
    assert calls == []


def test_each_input_changes_the_folder_of_the_state(small: Statistics, tmp_path: Path) -> None:
    kept, layer = replace(small, work=tmp_path), first_layer(small)
    other = layer._replace(rows=[layer.rows[0] + 1e-3, *layer.rows[1:]])
    model = replace(small.model, fingerprint="sha256:1")
    folders = [
        AlignmentState.of(statistics, rows, options).folder
        for statistics, rows, options in (
            (kept, layer, OPTIONS),
            (kept, other, OPTIONS),
            (replace(kept, model=model), layer, OPTIONS),
            (replace(kept, seed=1), layer, OPTIONS),
            (kept, layer, replace(OPTIONS, rank=4)),
            (kept, layer, replace(OPTIONS, loss="log")),
            (kept, layer, replace(OPTIONS, passes=3)),
        )
    ]
    assert len(set(folders)) == len(folders)
    assert AlignmentState.of(kept, layer, OPTIONS).folder == folders[0]
    assert AlignmentState.of(small, layer, OPTIONS).folder is None


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "swapped"])
def test_damaged_state_is_computed_again(
    small: Statistics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    kept = replace(small, work=tmp_path)
    want = contents(METHOD.calibrate(kept, HALF))
    path = next(tmp_path.rglob("layer_02.safetensors"))
    whole = path.read_bytes()
    spoiled = {
        "bit": whole[:-1] + bytes([whole[-1] ^ 1]),
        "cut": whole[:-10],
        "empty": b"",
        "swapped": path.with_name("layer_03.safetensors").read_bytes(),
    }
    path.write_bytes(spoiled[damage])
    calls = counted(monkeypatch)
    assert contents(METHOD.calibrate(kept, HALF)) == want
    assert calls == [2]
    assert path.read_bytes() == whole
    assert not list(tmp_path.rglob("*.partial*"))


def test_state_that_cannot_be_written(small: Statistics, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadOutput, match="cannot be written"):
        METHOD.calibrate(replace(small, work=tmp_path / "file"), HALF)


def test_rows_of_inference_mode_can_be_trained_on(small: Statistics) -> None:
    """Rows made in inference mode can be used, and the caller may be in inference mode."""
    layers = small.layers
    assert layers is not None

    @torch.inference_mode()
    def frozen() -> Iterator[LayerRows]:
        for layer in layers():
            yield layer._replace(rows=[rows * 1 for rows in layer.rows])

    want = contents(METHOD.calibrate(small, HALF))
    with torch.inference_mode():
        got = METHOD.calibrate(replace(small, layers=frozen), HALF)
    assert contents(got) == want


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which the numbers of tuned layers are added."""
    calls: list[int] = []
    align = alignment.align

    def noted(layer: LayerRows, layout: Layout, options: alignment.Options, seed: int) -> alignment.Candidates:
        calls.append(layer.number)
        return align(layer, layout, options, seed)

    monkeypatch.setattr(alvts, "align", noted)
    return calls
