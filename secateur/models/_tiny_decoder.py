# SPDX-License-Identifier: Apache-2.0
"""The decoder of a tiny model, for tests."""

from __future__ import annotations

from typing import Any


def sizes(processor: Any) -> dict[str, Any]:
    """Arguments of a configuration of the Llama kind: four layers, grouped heads, the vocabulary of the processor."""
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
