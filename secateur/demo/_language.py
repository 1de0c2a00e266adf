# SPDX-License-Identifier: Apache-2.0
"""Stage 2: the decoder learns to answer from what the tower, now frozen, has read."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import LlavaForConditionalGeneration

from secateur.demo._dense import GRID
from secateur.demo._loop import Batch
from secateur.demo._turns import HEAD, Turns

__all__ = ["LanguageStage"]

FIRST_IMAGE_TOKEN = HEAD.index("<image>")
AFTER_IMAGE = FIRST_IMAGE_TOKEN + GRID**2


class LanguageStage:
    """Trains the decoder; projector and word embeddings, aligned by stage 1, follow slowly."""

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
