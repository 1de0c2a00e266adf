# SPDX-License-Identifier: Apache-2.0
"""Stage 2: the decoder learns to answer from the features of the frozen tower.

A batch holds the prompt head of an image, then several turns about this image, packed one after the other. A turn
attends to the head and to itself, and its positions continue those of the head. So it is trained as the single question
that it is at inference, at lower cost: the 144 vision tokens are computed once. There are three kinds of batch:

    questions     one question and its answer per turn
    chains        "; seven red left ; blue two top": the three words of each object in random order. The second and
                  third word depend on the image alone, which teaches to bind words to patches: with questions alone
                  the decoder stays at chance level for thousands of steps
    conversation  one long turn of several questions, which teaches follow-up questions

A batch, with L = head + ROOM:

    pixel_values  [B, 3, 96, 96]
    input_ids     int64 [B, L]      <pad> after each turn
    weights       float [B, L]      loss weight of predicting this token; 0 for all tokens that are given
    position_ids  int64 [1, L]
    attention_mask  float [1, 1, L, L]   0 where a row may attend, else the most negative number
"""

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import LlavaForConditionalGeneration

from secateur.demo._dense import GRID, normalization, pixels
from secateur.demo._loop import Batch
from secateur.demo.build import VOCABULARY
from secateur.demo.scenes import KINDS, Scene, SceneQuestion, questions, scene

__all__ = ["HEAD", "LanguageStage", "Turns"]

HEAD = ("<s>", "user", ":", *["<image>"] * GRID**2, "\n")
ROOM = 80  # tokens after the head, the same in every batch, so that a compiled layer fits all batches
QUESTION_WIDTH = 10  # tokens of the longest question with its answer
END_WEIGHT = 0.1  # "</s>" after an answer is learned quickly
FIRST_IMAGE_TOKEN = HEAD.index("<image>")
AFTER_IMAGE = FIRST_IMAGE_TOKEN + GRID**2

Words = list[tuple[str, float]]  # one turn: words with their weights


class Turns(Dataset[Batch]):
    """Batches by step. The first `chain_share` of the run has only chains."""

    def __init__(self, seed: int, steps: int, batch: int, split: str = "train", chain_share: float = 0.1) -> None:
        self.seed, self.steps, self.batch, self.split = seed, steps, batch, split
        self.chain_steps = round(steps * chain_share)
        self.mean, self.std = normalization()

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng([zlib.crc32(b"turns"), self.seed, step])
        sort, counts = self.plan(step, rng)
        first = (self.seed << 40) + (1 << 39) + step * self.batch
        scenes = [scene(first + index, self.split, counts, deformation=1.3) for index in range(self.batch)]
        if sort == "chains":
            width = 4 * counts[1]
            turns = [[_chain(each, rng) for _ in range(ROOM // width)] for each in scenes]
        elif sort == "conversation":
            width = ROOM
            turns = [[_conversation(_mixed(each, 6, rng))] for each in scenes]
        else:
            width = QUESTION_WIDTH
            turns = [[_turn(asked) for asked in _mixed(each, ROOM // width, rng)] for each in scenes]
        return {"pixel_values": pixels(scenes, self.mean, self.std), "sort": sort, **pack(turns, width)}

    def plan(self, step: int, rng: np.random.Generator) -> tuple[str, tuple[int, int]]:
        """Return kind of batch and range of object counts of a step: few objects first, then as in questions."""
        share = step / max(1, self.chain_steps)
        if share < 0.25:
            return "chains", (1, 2)
        if share < 0.5:
            return "chains", (2, 3)
        draw = rng.random()
        if share < 1.0 or draw < 0.15:
            return "chains", (2, 5)
        return ("conversation" if draw < 0.25 else "questions"), (2, 5)


def pack(turns: list[list[Words]], width: int) -> dict[str, Tensor]:
    """Return token tensors of B images with equally many turns, each padded to `width` tokens, and all to ROOM."""
    ids = {word: index for index, word in enumerate(VOCABULARY)}
    head = [ids[word] for word in HEAD]
    input_ids = torch.full((len(turns), len(head) + ROOM), ids["<pad>"])
    weights = torch.zeros(input_ids.shape)
    input_ids[:, : len(head)] = torch.tensor(head)
    for row, image_turns in enumerate(turns):
        for place, words in enumerate(image_turns):
            start = len(head) + place * width
            input_ids[row, start : start + len(words)] = torch.tensor([ids[word] for word, _ in words])
            weights[row, start : start + len(words)] = torch.tensor([weight for _, weight in words])

    offset = torch.arange(ROOM)
    turn = torch.cat([torch.zeros(len(head), dtype=torch.long), 1 + offset // width])
    position_ids = torch.cat([torch.arange(len(head)), len(head) + offset % width])
    visible = (turn[None, :] == turn[:, None]) | (turn[None, :] == 0)
    visible &= torch.ones(len(turn), len(turn), dtype=torch.bool).tril()
    mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)
    return {
        "input_ids": input_ids,
        "weights": weights,
        "position_ids": position_ids[None],
        "attention_mask": mask[None, None],
    }


def _turn(asked: SceneQuestion) -> Words:
    given = [*asked.text.split(), "assistant", ":"]
    return [(word, 0.0) for word in given] + [(asked.answer, 1.0), ("</s>", END_WEIGHT)]


def _conversation(asked: list[SceneQuestion]) -> Words:
    """Return a first question and follow-up questions in the form of the chat template, truncated to ROOM."""
    words = _turn(asked[0])
    for each in asked[1:]:
        words += [("user", 0.0), (":", 0.0), *_turn(each)]
    return words[:ROOM]


def _chain(shown: Scene, rng: np.random.Generator) -> Words:
    words: Words = []
    for index in rng.permutation(len(shown.objects)):
        each = shown.objects[index]
        attributes = rng.permutation([each.digit, each.color, each.position])
        words += [(";", 0.0), (str(attributes[0]), 0.0), (str(attributes[1]), 1.0), (str(attributes[2]), 1.0)]
    return words


def _mixed(shown: Scene, count: int, rng: np.random.Generator) -> list[SceneQuestion]:
    """Return `count` questions about one scene in random order, with the kinds as balanced as possible."""
    asked = questions(shown, rng)
    rounds = -(-count // len(KINDS))
    kinds = np.concatenate([rng.permutation(len(KINDS)) for _ in range(rounds)])[:count]
    fitting = {kind: [each for each in asked if each.kind == kind] for kind in KINDS}
    chosen = [fitting[KINDS[kind]] for kind in kinds]
    return [group[rng.integers(len(group))] for group in chosen]


class LanguageStage:
    """Training of the decoder. Projector and word embeddings, aligned by stage 1, have lower learning rates."""

    name = "language"
    warmup = 100

    def __init__(
        self, model: LlavaForConditionalGeneration, steps: int, seed: int, batch: int = 16, learning_rate: float = 1e-3
    ) -> None:
        self.model, self.steps, self.seed, self.batch, self.learning_rate = model, steps, seed, batch, learning_rate
        inner = model.model
        self.module: nn.Module = nn.ModuleList([inner.multi_modal_projector, inner.language_model])

    def groups(self) -> list[dict[str, Any]]:
        decoder = self.model.model.language_model
        layers = list(decoder.layers.parameters())
        return [
            {"params": [each for each in layers if each.ndim > 1], "scale": 1.0},
            {"params": [each for each in layers if each.ndim == 1], "scale": 1.0, "weight_decay": 0.0},
            {"params": list(decoder.norm.parameters()), "scale": 1.0, "weight_decay": 0.0},
            {"params": list(decoder.embed_tokens.parameters()), "scale": 0.3, "weight_decay": 0.0},
            {"params": list(self.model.model.multi_modal_projector.parameters()), "scale": 0.1},
        ]

    def data(self) -> Dataset[Batch]:
        return Turns(self.seed, self.steps, self.batch)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        inner = self.model.model
        with torch.no_grad():
            features = inner.vision_tower(batch["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
        words = inner.language_model.embed_tokens(batch["input_ids"])
        patches = inner.multi_modal_projector(features)
        rows = [words[:, :FIRST_IMAGE_TOKEN], patches.to(words.dtype), words[:, AFTER_IMAGE:]]
        hidden = inner.language_model(
            inputs_embeds=torch.cat(rows, dim=1),
            position_ids=batch["position_ids"],
            attention_mask=batch["attention_mask"],
            use_cache=False,
        ).last_hidden_state

        asked = batch["weights"][:, 1:] > 0
        logits = self.model.lm_head(hidden[:, :-1][asked]).float()
        wanted = batch["input_ids"][:, 1:][asked]
        weights = batch["weights"][:, 1:][asked]
        errors = functional.cross_entropy(logits, wanted, reduction="none")
        answers = weights == 1
        right = (logits.argmax(-1) == wanted)[answers].float().mean().item()
        return (errors * weights).sum() / weights.sum(), {batch["sort"]: right}
