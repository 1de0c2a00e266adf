# SPDX-License-Identifier: Apache-2.0
"""Batches for stage 2: an image's prompt head, then several turns about it packed behind one another.

Each turn sees the head and itself, and its positions go on from the head's, so it is trained exactly as the single
question it is at inference, at a fraction of the price: the 144 vision tokens are paid for once. Three sorts of batch:

    questions     one question and its answer per turn
    chains        "; seven red left ; blue two top": the three words of each object in random order; the second and
                  third can only be known by looking. They teach to bind words to patches: with questions alone the
                  decoder stays at chance for thousands of steps
    conversation  one long turn of several questions, so that follow-up questions work

A batch, with L = head + ROOM:

    pixel_values  [B, 3, 96, 96]
    input_ids     int64 [B, L]      <pad> behind each turn
    weights       float [B, L]      how much it matters to predict this token; 0 for all that is given
    position_ids  int64 [1, L]
    attention_mask  float [1, 1, L, L]   0 where a row may look, else the most negative number
"""

import zlib

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from secateur.demo._dense import GRID, normalization, pixels
from secateur.demo._loop import Batch
from secateur.demo.build import VOCABULARY
from secateur.demo.scenes import KINDS, Scene, SceneQuestion, questions, scene

__all__ = ["HEAD", "Turns"]

HEAD = ("<s>", "user", ":", *["<image>"] * GRID**2, "\n")
ROOM = 80  # tokens behind the head, the same in every batch, so that a compiled layer fits them all
QUESTION_WIDTH = 10  # tokens of the longest question with its answer
END_WEIGHT = 0.1  # "</s>" after an answer is soon learned

Words = list[tuple[str, float]]  # one turn: words with their weights


class Turns(Dataset[Batch]):
    """Item s is the batch of step s. chain_share is the first part of the run, in which there are only chains."""

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
        """Sort of batch and range of object counts at one step: few objects first, then as in the questions."""
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
    """Token tensors of B images with equally many turns, each padded to width tokens, all of them to ROOM."""
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

    behind = torch.arange(ROOM)
    turn = torch.cat([torch.zeros(len(head), dtype=torch.long), 1 + behind // width])
    position_ids = torch.cat([torch.arange(len(head)), len(head) + behind % width])
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
    """A first question, then follow-ups, as the chat template puts them. Cut to the room there is."""
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
    """count questions about one scene, the kinds as evenly as it goes, in random order."""
    asked = questions(shown, rng)
    rounds = -(-count // len(KINDS))
    kinds = np.concatenate([rng.permutation(len(KINDS)) for _ in range(rounds)])[:count]
    fitting = {kind: [each for each in asked if each.kind == kind] for kind in KINDS}
    chosen = [fitting[KINDS[kind]] for kind in kinds]
    return [group[rng.integers(len(group))] for group in chosen]
