# SPDX-License-Identifier: Apache-2.0
"""Models of random weights, for tests and measurements."""

from __future__ import annotations

from typing import TypeVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel

Model = TypeVar("Model", bound=PreTrainedModel)


def random_model(architecture: type[Model], config: PreTrainedConfig, seed: int = 0) -> Model:
    """`architecture` with weights spread enough for attention and logits to mean something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = architecture(config)
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.data.normal_(std=1.4 * weight[0].numel() ** -0.5)
            else:
                weight.data.uniform_(0.5, 1.5)
    return model
