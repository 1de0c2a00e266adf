# SPDX-License-Identifier: Apache-2.0
"""The chain against the same model in numpy: gates, cache, batches, follow-up questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from secateur.bundle.layout import Dimensions, Layout
from secateur.bundle.sampling import Sampling
from secateur.errors import BadBundle, SecateurError
from secateur.runtime import Answer, Pipeline
from secateur.runtime.image import load_image
from secateur.runtime.preprocess import pixel_values
from secateur.runtime.tokenizer import Tokenizer

Array = NDArray[Any]
Picture = Callable[[int], NDArray[np.uint8]]
SCHEDULES = ("full", "prune", "early", "none", "all")
QUESTION = "what color is the seven ?"


@dataclass(frozen=True)
class Oracle:
    """The tiny model in numpy, on whole sequences and without a cache; dropped tokens are masked."""

    w: Mapping[str, Array]
    sizes: Dimensions
    layout: Layout

    def logits(self, pixels: Array, ids: Sequence[int], kept: Mapping[int, Sequence[int]]) -> Array:
        """Return logits [V] after `ids` (including image rows); `kept` maps a layer to its kept vision tokens."""
        start, heads, size = self.layout.image_start, self.sizes.heads, self.sizes.head_dim
        image = slice(start, start + self.layout.vision_tokens)
        patches = pixels.reshape(3, 3, 4, 3, 4).transpose(1, 3, 0, 2, 4).reshape(self.layout.vision_tokens, -1)
        x = self.w["embed"][list(ids)].astype(np.float64)
        x[image] = patches @ self.w["patch"].reshape(self.sizes.vision_width, -1).T @ self.w["project"]
        alive = np.ones(len(ids), bool)
        positions = np.arange(len(ids))
        for layer in range(self.sizes.layers):
            if layer in kept:
                alive[image] = False
                alive[[start + i for i in kept[layer]]] = True
            q, k, v = ((x @ self.w[f"{name}{layer}"]).reshape(len(ids), -1, size) for name in "qkv")
            k, v = k.repeat(heads // k.shape[1], axis=1), v.repeat(heads // v.shape[1], axis=1)
            scores = np.einsum("qhd,khd->hqk", turn(q, positions), turn(k, positions)) / np.sqrt(size)
            scores = np.where((positions[:, None] >= positions) & alive, scores, -1e9)
            share = np.exp(scores - scores.max(-1, keepdims=True))
            share /= share.sum(-1, keepdims=True)
            mixed = np.einsum("hqk,khd->qhd", share, v).reshape(len(ids), -1)
            x = x + np.tanh(mixed @ self.w[f"o{layer}"])
            x = x + np.tanh(x @ self.w[f"m{layer}"])
        result: Array = x[-1] @ self.w["head"]
        return result


def turn(x: Array, positions: Array) -> Array:
    """Apply RoPE to [rows,heads,4]."""
    angle = positions[:, None, None] * np.array([1.0, 0.1, 1.0, 0.1])
    turned = np.concatenate([-x[..., 2:], x[..., :2]], axis=-1)
    result: Array = x * np.cos(angle) + turned * np.sin(angle)
    return result


@pytest.fixture(scope="module")
def oracle(weights: Mapping[str, Array], vlm: Pipeline) -> Oracle:
    return Oracle(weights, vlm.bundle.manifest.dimensions, vlm.bundle.manifest.layout)


def expected(oracle: Oracle, vlm: Pipeline, image: Array, tail: Sequence[int], answer: Answer) -> Array:
    """Return the logits of the numpy model, with the tokens kept in `answer`."""
    pixels = pixel_values(load_image(image), vlm.bundle.preprocess)[0]
    ids = [*oracle.layout.ids(vlm.bundle.prompt.pad), *tail]
    kept = {gate.layer: indices for gate, indices in zip(answer.receipt.gates, answer.kept, strict=True)}
    return oracle.logits(pixels, ids, kept)


def tokens(vlm: Pipeline) -> Tokenizer:
    return Tokenizer.read(vlm.bundle.prompt, vlm.bundle.path("tokenizer.json"))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_decode_equals_fresh_masked_runs(
    vlm: Pipeline, picture: Picture, oracle: Oracle, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Array] = []
    step_once = vlm._sizes.first.step

    def recorded(*arguments: Any) -> Any:
        logits = step_once(*arguments)
        steps.append(logits[0])
        return logits

    monkeypatch.setattr(vlm._sizes.first, "step", recorded)
    for seed in range(3):
        steps.clear()
        answer = vlm.ask(picture(seed), QUESTION, schedule, max_new_tokens=12, temperature=float(seed), seed=seed)
        assert len(steps) == len(answer.tokens) - 1
        tail = tokens(vlm).first(QUESTION)
        for step, logits in enumerate([answer.first_logits, *steps]):
            want = expected(oracle, vlm, picture(seed), [*tail, *answer.tokens[:step]], answer)
            np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-4)
            assert seed or answer.tokens[step] == np.argmax(want)


def test_gates_and_receipt(vlm: Pipeline, picture: Picture) -> None:
    answer = vlm.ask(picture(0), QUESTION, schedule="prune", max_new_tokens=4)
    receipt = answer.receipt
    assert [(g.layer, g.before, g.requested, g.applied) for g in receipt.gates] == [(1, 9, 5, 5), (3, 5, 2, 2)]
    assert [len(k) for k in answer.kept] == [5, 2]
    assert set(answer.kept[1]) < set(answer.kept[0]) < set(range(9))
    assert list(answer.kept[0]) == sorted(answer.kept[0])
    rows = receipt.prompt_rows
    assert rows == 2 + 9 + len(tokens(vlm).first(QUESTION))
    assert receipt.segment_rows == (rows, rows - 4, rows - 7)
    per_row = 2 * 2 * 4 * 4
    assert receipt.cache_bytes == per_row * (4 * (rows + 4) - 2 * 4 - 7)
    assert receipt.generated_tokens == len(answer.tokens) == 4
    stages = {"preprocess", "vision", "projector", "embed", "segment_0", "segment_1", "segment_2", "prune.0", "prune.1"}
    sums = {"encode", "prefill", "first_token", "decode", "decode_per_token", "total"}
    assert stages | sums == answer.timings.keys()
    assert min(answer.timings.values()) > 0
    assert receipt.as_dict()["gates"][1]["applied"] == 2


def test_keep_all_equals_full_and_keep_none_runs(vlm: Pipeline, picture: Picture) -> None:
    full, everything, none = (vlm.ask(picture(1), QUESTION, schedule=s) for s in ("full", "all", "none"))
    assert full.tokens == everything.tokens
    assert np.array_equal(full.first_logits, everything.first_logits)
    assert full.receipt.gates == () and everything.kept == (tuple(range(9)),)
    assert none.kept == ((),) and none.receipt.gates[0].applied == 0
    assert not np.allclose(full.first_logits, none.first_logits)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_batch_equals_single_runs(vlm: Pipeline, picture: Picture, schedule: str) -> None:
    prompts = ["what is the color of the seven and where is the three ?", "red ?", "where is the blue seven ?"]
    images = [picture(i) for i in range(3)]
    for options in ({}, {"temperature": 1.5, "top_p": 0.9, "seed": 5}):
        together = vlm.ask(images, prompts, schedule=schedule, max_new_tokens=20, **options)  # type: ignore[call-overload]
        for image, prompt, got in zip(images, prompts, together, strict=True):
            alone = vlm.ask(image, prompt, schedule=schedule, max_new_tokens=20, **options)  # type: ignore[call-overload]
            assert got.tokens == alone.tokens and got.text == alone.text and got.kept == alone.kept
            assert got.receipt.prompt_rows == alone.receipt.prompt_rows
            np.testing.assert_allclose(got.first_logits, alone.first_logits, rtol=1e-4, atol=1e-4)
    lengths = {len(a.tokens) for a in together}
    assert len(lengths) > 1, "samples must end at different steps, or this test checks nothing"


def test_one_image_or_one_prompt_serves_the_batch(vlm: Pipeline, picture: Picture) -> None:
    prompts = ["red ?", QUESTION]
    shared = vlm.ask(picture(0), prompts, schedule="prune")
    assert [a.tokens for a in shared] == [vlm.ask(picture(0), p, schedule="prune").tokens for p in prompts]
    pair = vlm.ask([picture(0), picture(1)], QUESTION, schedule="prune")
    assert [a.tokens for a in pair] == [vlm.ask(picture(i), QUESTION, schedule="prune").tokens for i in range(2)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("limit", [1, 3, 30])
def test_follow_up_equals_one_long_conversation(
    vlm: Pipeline, picture: Picture, oracle: Oracle, schedule: str, limit: int
) -> None:
    chat = vlm.open(picture(2), schedule=schedule)
    tail = tokens(vlm).first(QUESTION)
    answer = chat.ask(QUESTION, max_new_tokens=limit)
    assert answer.tokens == vlm.ask(picture(2), QUESTION, schedule=schedule, max_new_tokens=limit).tokens
    for question in ("where is the red three ?", "and the blue ?"):
        tail += [t for t in answer.tokens if t != 2] + tokens(vlm).next(question)
        before, answer = answer, chat.ask(question, max_new_tokens=limit)
        assert answer.kept == before.kept and answer.receipt.gates == before.receipt.gates
        want = expected(oracle, vlm, picture(2), tail, answer)
        np.testing.assert_allclose(answer.first_logits, want, rtol=1e-4, atol=1e-4)


def test_a_batch_of_conversations_equals_single_ones(vlm: Pipeline, picture: Picture) -> None:
    """Padding rows of a sample that ended before the others must not count in its next turn."""
    turns = [[QUESTION, "red ?"], ["and the blue ?", "where is the red three ?"]]
    images, options = [picture(0), picture(1)], Sampling(20, temperature=8.0, seed=0)
    together = vlm._chat([vlm._sizes.prepare(image, None) for image in images], 2, "prune", 120)
    chats = [vlm.open(image, "prune", 120) for image in images]
    for questions in turns:
        answers = together.begin(questions, options).answers()
        ended = {len(a.tokens) for a in answers}
        assert len(ended) == 2 or questions is not turns[0], "samples must end at different steps"
        for got, chat, question in zip(answers, chats, questions, strict=True):
            want = chat.ask(question, max_new_tokens=20, temperature=8.0, seed=0)
            np.testing.assert_allclose(got.first_logits, want.first_logits, rtol=1e-4, atol=1e-4)
            assert got.tokens == want.tokens


def test_an_unfinished_stream_adds_only_its_consumed_tokens(vlm: Pipeline, picture: Picture, oracle: Oracle) -> None:
    chat = vlm.open(picture(4), schedule="prune")
    stream = chat.stream(QUESTION, max_new_tokens=20)
    said = next(stream), next(stream)
    turn = chat.turn
    assert turn is not None and len(turn.tokens[0]) == len(said)
    tail = tokens(vlm).first(QUESTION) + turn.tokens[0] + tokens(vlm).next("red ?")
    answer = chat.ask("red ?")
    want = expected(oracle, vlm, picture(4), tail, answer)
    np.testing.assert_allclose(answer.first_logits, want, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="a new question was asked before"):
        next(stream)


def test_an_interrupted_run_leaves_the_cache_unchanged(
    vlm: Pipeline, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, chat = vlm.open(picture(3), schedule="prune"), vlm.open(picture(3), schedule="prune")
    for each in (undisturbed, chat):
        each.ask(QUESTION, max_new_tokens=5)
    room, run = chat.room, vlm._backend.run

    def interrupted(graph: str, inputs: Any, outputs: Any) -> None:
        run(graph, inputs, outputs)
        if graph == "segment_1":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vlm._backend, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            chat.ask("where is the blue seven ?")
    assert chat.room == room
    again, want = chat.ask("red ?"), undisturbed.ask("red ?")
    assert again.tokens == want.tokens and np.array_equal(again.first_logits, want.first_logits)


def test_a_gate_that_keeps_the_wrong_tokens_is_refused(
    vlm: Pipeline, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = vlm._backend.run

    def repeats_a_token(graph: str, inputs: Any, outputs: Any) -> None:
        run(graph, inputs, outputs)
        if graph == "prune.1":
            outputs["vision_index.out"].numpy()[:] = 3

    monkeypatch.setattr(vlm._backend, "run", repeats_a_token)
    with pytest.raises(BadBundle, match=r"'prune\.1' at layer 3 kept 0 of 5 .* asks for 2"):
        vlm.ask(picture(0), QUESTION, schedule="prune")


def test_nan_logits_are_an_error(vlm: Pipeline, picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    run = vlm._backend.run

    def overflows(graph: str, inputs: Any, outputs: Any) -> None:
        run(graph, inputs, outputs)
        if "logits" in outputs:
            outputs["logits"].numpy()[0, 0] = np.nan

    monkeypatch.setattr(vlm._backend, "run", overflows)
    with pytest.raises(SecateurError, match="NaN"):
        vlm.ask(picture(0), QUESTION, schedule="full")
