# SPDX-License-Identifier: Apache-2.0
"""Models with random weights, for tests and measurements."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel

Model = TypeVar("Model", bound=PreTrainedModel)


def random_model(architecture: type[Model], config: PreTrainedConfig, seed: int = 0) -> Model:
    """Return an `architecture` with random weights, large enough for distinct attention and logits."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = architecture(config)
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.data.normal_(std=1.4 * weight[0].numel() ** -0.5)
            else:
                weight.data.uniform_(0.5, 1.5)
    return model


def sizes(processor: Any) -> dict[str, Any]:
    """Return settings of a Llama-style decoder: four layers, grouped heads, the vocabulary of the processor."""
    tokenizer = processor.tokenizer
    return {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
