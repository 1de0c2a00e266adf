# SPDX-License-Identifier: Apache-2.0
"""Stage 1: the vision tower learns to classify every patch.

With the language loss alone, a tower this small does not learn to distinguish digits. So the projected patches of an
object are trained to predict its digit, color and cell, with the word embeddings as classifier weights. This aligns
tower, projector and embeddings: a projected patch becomes a mix of the embeddings of its three words. The class token
of the last layer is trained to predict the digits and colors in the picture, which makes its attention meaningful.

    pixel_values  [B, 3, 96, 96]
    digit, color, position  int64 [B, 144]   class of the patch, the last class is "nothing"
    center   float [B, 144]   1 in the patch at the center of an object (helps counting)
    present  float [B, 10 + 7]   digits and colors of the scene
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import LlavaForConditionalGeneration

from secateur.demo._loop import Batch
from secateur.demo._render import SIZE
from secateur.demo.build import PATCH, VOCABULARY, WIDTH, build_processor
from secateur.demo.scenes import COLOR_WORDS, DIGIT_WORDS, POSITION_WORDS, Scene, scene

__all__ = ["DenseStage", "pixels"]

GRID = SIZE // PATCH
WORDS = {"digit": DIGIT_WORDS, "color": COLOR_WORDS, "position": POSITION_WORDS}
NOTHING_WEIGHT = 0.1  # there are many background patches, and they are easy
SHARPNESS = 4.0  # logits per unit of dot product: keeps projected patches about as long as word embeddings


def pixels(scenes: list[Scene], mean: Tensor, std: Tensor) -> Tensor:
    """Return pixel_values float [B, 3, 96, 96], equal to the processor's for images that need no resizing."""
    stacked = np.stack([np.asarray(each.image) for each in scenes])
    values = torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255
    return (values - mean[:, None, None]) / std[:, None, None]


def normalization() -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [3] of the demo's image processor."""
    image_processor = build_processor().image_processor
    return torch.tensor(image_processor.image_mean), torch.tensor(image_processor.image_std)


class DenseScenes(Dataset[Batch]):
    """Crowded scenes (digits and colors repeat) with a label for every patch; item s is the batch of step s."""

    def __init__(self, seed: int, batch: int, split: str = "train", deformation: float = 1.6) -> None:
        self.seed, self.batch, self.split, self.deformation = seed, batch, split, deformation
        self.mean, self.std = normalization()

    def __getitem__(self, step: int) -> Batch:
        first = (self.seed << 40) + step * self.batch
        scenes = [
            scene(first + index, self.split, counts=(2, 9), repeats=True, deformation=self.deformation)
            for index in range(self.batch)
        ]
        labels = [_labels(each) for each in scenes]
        batch: Batch = {name: torch.stack([each[name] for each in labels]) for name in labels[0]}
        return {"pixel_values": pixels(scenes, self.mean, self.std), **batch}


def _labels(shown: Scene) -> dict[str, Tensor]:
    patch = {name: torch.full((GRID, GRID), len(words)) for name, words in WORDS.items()}
    center = torch.zeros(GRID, GRID)
    present = torch.zeros(len(DIGIT_WORDS) + len(COLOR_WORDS))
    middles = torch.arange(GRID) * PATCH + PATCH / 2
    for each in shown.objects:
        rows = (middles > each.top) & (middles < each.top + each.side)
        columns = (middles > each.left) & (middles < each.left + each.side)
        inside = rows[:, None] & columns[None, :]
        for name, words in WORDS.items():
            patch[name][inside] = words.index(getattr(each, name))
        center[(each.top + each.side // 2) // PATCH, (each.left + each.side // 2) // PATCH] = 1
        present[DIGIT_WORDS.index(each.digit)] = 1
        present[len(DIGIT_WORDS) + COLOR_WORDS.index(each.color)] = 1
    return {**{name: each.flatten() for name, each in patch.items()}, "center": center.flatten(), "present": present}


class DenseHeads(nn.Module):
    """Parameters used in stage 1 only: a vector for "nothing", and heads for the center and for the class token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(len(WORDS), width))
        self.center = nn.Linear(width, 1)
        self.present = nn.Linear(width, len(DIGIT_WORDS) + len(COLOR_WORDS))


class DenseStage:
    """Training of tower, projector and word embeddings; the decoder is not changed."""

    name = "dense"
    warmup = 200

    def __init__(
        self, model: LlavaForConditionalGeneration, steps: int, seed: int, batch: int = 32, learning_rate: float = 1e-3
    ) -> None:
        self.model, self.steps, self.seed, self.batch, self.learning_rate = model, steps, seed, batch, learning_rate
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            self.heads = DenseHeads(WIDTH)
        self.heads.to(model.device)
        inner = model.model
        self.embedding = inner.language_model.embed_tokens
        self.module: nn.Module = nn.ModuleList(
            [inner.vision_tower, inner.multi_modal_projector, self.embedding, self.heads]
        )
        self.ids = {
            name: torch.tensor([VOCABULARY.index(word) for word in words], device=model.device)
            for name, words in WORDS.items()
        }

    def groups(self) -> list[dict[str, Any]]:
        matrices = [each for each in self.module.parameters() if each.ndim > 1]
        others = [each for each in self.module.parameters() if each.ndim <= 1]
        return [
            {"params": matrices, "scale": 1.0},
            {"params": others, "scale": 1.0, "weight_decay": 0.0},
        ]

    def data(self) -> Dataset[Batch]:
        return DenseScenes(self.seed, self.batch)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        inner = self.model.model
        seen = inner.vision_tower(batch["pixel_values"], output_hidden_states=True)
        projected = inner.multi_modal_projector(seen.hidden_states[-2][:, 1:])

        total = torch.zeros((), device=projected.device)
        shown: dict[str, float] = {}
        object_patches = batch["digit"] < len(DIGIT_WORDS)
        weights = torch.where(object_patches, 1.0, NOTHING_WEIGHT)
        for row, name in enumerate(WORDS):
            words = torch.cat([self.embedding(self.ids[name]), self.heads.nothing[row : row + 1]])
            logits = (SHARPNESS * projected @ words.T).float()
            errors = functional.cross_entropy(logits.flatten(0, 1), batch[name].flatten(), reduction="none")
            total = total + (errors * weights.flatten()).sum() / weights.sum()
            right = logits.argmax(-1) == batch[name]
            shown[name] = right[object_patches].float().mean().item()
        center = self.heads.center(projected).squeeze(-1).float()
        present = self.heads.present(seen.pooler_output).float()
        total = total + 2 * functional.binary_cross_entropy_with_logits(center, batch["center"])
        total = total + functional.binary_cross_entropy_with_logits(present, batch["present"])
        shown["present"] = ((present > 0) == (batch["present"] > 0)).float().mean().item()
        return total, shown

    @torch.no_grad()
    def accuracy(self, split: str, batches: int = 10) -> dict[str, float]:
        """Return the share of correct object patches per attribute, on undeformed scenes of another split."""
        unseen = DenseScenes(self.seed, self.batch, split, deformation=1.0)
        sums: dict[str, float] = {}
        for step in range(batches):
            batch = {key: value.to(self.model.device) for key, value in unseen[step].items()}
            for name, value in self.loss(batch)[1].items():
                sums[name] = sums.get(name, 0.0) + value / batches
        return sums
