# SPDX-License-Identifier: Apache-2.0
"""Small models with random weights, and processors made in memory, for tests and measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from secateur.checkpoints import load_processor, tiny_tokenizers

Model = TypeVar("Model", bound=PreTrainedModel)
VISION: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
"""Sizes of a vision encoder."""
TEXT: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
"""Sizes of a Llama-style decoder with grouped heads."""
PARTS = (
    "{% for p in m['content'] if p['type'] == 'image' %}IMAGE{% endfor %}"
    "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }}{% endfor %}"
)
"""Template of the content of a message `m`; IMAGE is replaced by the text of an image."""
CHATML = (
    "{% for m in messages %}SYSTEM<|im_start|>{{ m['role'] }}\n"
    + PARTS
    + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class TinyTokenizer:
    """Settings of a tiny tokenizer, like those of a family's checkpoints.

    tokens    kind of tokenizer, see `tiny_tokenizers`
    special   special tokens, in the order of their ids
    template  chat template; None: a single question, see bundle.prompt
    named     further token attributes of the tokenizer, such as image_token
    """

    tokens: str
    special: tuple[str, ...]
    template: str | None
    eos: str
    pad: str
    bos: str | None = None
    unk: str | None = None
    named: Mapping[str, str] = field(default_factory=dict)

    def make(self, vocabulary: int, tokens: str | None = None) -> PreTrainedTokenizerFast:
        """Return the tokenizer with at most `vocabulary` ids; `tokens` is another kind of tokenizer."""
        special = self.special if self.unk or tokens in (None, "bytes") else (*self.special, "<unk>")
        made = tiny_tokenizers.build(tokens or self.tokens, special, vocabulary)
        if self.bos:
            start = [(self.bos, special.index(self.bos))]
            made.post_processor = TemplateProcessing(
                single=f"{self.bos} $A", pair=f"{self.bos} $A $B", special_tokens=start
            )
        names = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad}
        names["unk_token"] = "<unk>" if "<unk>" in special else None
        return PreTrainedTokenizerFast(
            tokenizer_object=made,
            **{name: token for name, token in names.items() if token},
            extra_special_tokens=dict(self.named),
            clean_up_tokenization_spaces=False,
        )


def chatml(named: Mapping[str, str], image: str, system: str = "", more: tuple[str, ...] = ()) -> TinyTokenizer:
    """Return the settings of a byte-level tokenizer with a ChatML template.

    Args:
        named: the tokens of images and videos, by attribute.
        image: text of an image in a message.
        system: template before each message, for a default system prompt.
        more: further special tokens, before the named ones.
    """
    return TinyTokenizer(
        "bytes",
        (*CHATML_TOKENS, *more, *named.values()),
        CHATML.replace("IMAGE", image).replace("SYSTEM", system),
        eos="<|im_end|>",
        pad="<|endoftext|>",
        named=named,
    )


def processor(
    kind: str,
    tokenizer: TinyTokenizer,
    image_processor: Any,
    vocabulary: int = 512,
    tokens: str | None = None,
    **options: Any,
) -> ProcessorMixin:
    """Return the processor of transformers' model type `kind` around `image_processor`.

    Args:
        vocabulary: highest number of ids in the tokenizer; `len(processor.tokenizer)` is the actual number. A processor
            class may add more tokens of its own.
        tokens: kind of tokenizer, see `tiny_tokenizers`; None: that of `tokenizer`.
        options: arguments of the processor's class, such as patch_size, image_seq_len or num_image_tokens.
    """
    made = tokenizer.make(vocabulary, tokens)
    return load_processor.build(kind, image_processor, made, chat_template=tokenizer.template, **options)


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
    """Return settings of a decoder of the sizes `TEXT`, with the vocabulary of the processor."""
    tokenizer = processor.tokenizer
    return TEXT | {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
