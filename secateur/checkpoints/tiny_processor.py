# SPDX-License-Identifier: Apache-2.0
"""The families' own processors around small tokenizers, built in memory: special tokens and templates of their form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from secateur.checkpoints import load_processor, tiny_tokenizers

PARTS = (
    "{% for p in m['content'] if p['type'] == 'image' %}IMAGE{% endfor %}"
    "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }}{% endfor %}"
)
WORDS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} assistant "
    + PARTS.replace("IMAGE", "")
    + " {{ eos_token }}{% else %} user "
    + PARTS.replace("IMAGE", "<image> ")
    + "{% endif %}{% endfor %}{% if add_generation_prompt %} assistant{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    + PARTS.replace("IMAGE", "")
    + "{{ eos_token }}{% elif m['role'] == 'user' %}[INST] "
    + PARTS.replace("IMAGE", "<image>\n")
    + " [/INST]{% else %}<<SYS>>\n"
    + PARTS.replace("IMAGE", "")
    + "\n<</SYS>>\n{% endif %}{% endfor %}"
)
CHAT = (
    "{% for m in messages %}SYSTEM<|im_start|>{{ m['role'] }}\n"
    + PARTS
    + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if loop.first and m['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
COLON = (
    "START{% for m in messages %}{{ m['role'] | capitalize }}:"
    "{% if m['content'][0]['type'] == 'text' %} {% endif %}"
    + PARTS.replace("IMAGE", "<image>")
    + "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_VISION = (*QWEN, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
VISION_CHAT = CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
IDEFICS = (
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)


@dataclass(frozen=True)
class Form:
    """What a family's checkpoints have in common: kind of tokenizer, special tokens and chat template."""

    tokens: str
    special: tuple[str, ...]
    template: str | None
    eos: str
    pad: str
    bos: str | None = None
    unk: str | None = None
    named: dict[str, str] = field(default_factory=dict)


SENTENCE: dict[str, Any] = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>"}
VIDEO = {"image_token": "<image>", "video_token": "<video>"}
VISION = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
INTERNVL = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
FORMS = {
    "llava": Form("words", ("<pad>", "<s>", "</s>", "<image>", "<unk>"), WORDS, **SENTENCE),
    "llava_next": Form("pieces", ("<unk>", "<s>", "</s>", "<image>", "<pad>"), INST, **SENTENCE),
    "llava_onevision": Form(
        "bytes",
        (*QWEN, "<image>", "<video>"),
        CHAT.replace("IMAGE", "<image>\n").replace("SYSTEM", ""),
        eos="<|im_end|>",
        pad="<|endoftext|>",
        named=VIDEO,
    ),
    **{
        name: Form(
            "bytes",
            QWEN_VISION,
            VISION_CHAT.replace("SYSTEM", system),
            eos="<|im_end|>",
            pad="<|endoftext|>",
            named=VISION,
        )
        for name, system in (("qwen2_vl", DEFAULT_SYSTEM), ("qwen2_5_vl", DEFAULT_SYSTEM), ("qwen3_vl", ""))
    },
    "internvl": Form(
        "bytes",
        (*QWEN, *INTERNVL.values()),
        CHAT.replace("IMAGE", "<IMG_CONTEXT>\n").replace("SYSTEM", ""),
        eos="<|im_end|>",
        pad="<|endoftext|>",
        named=INTERNVL,
    ),
    "idefics3": Form(
        "bytes",
        ("<|begin_of_text|>", "<|end_of_text|>", *IDEFICS),
        COLON.replace("START", "<|begin_of_text|>"),
        bos="<|begin_of_text|>",
        eos="<end_of_utterance>",
        pad="<|end_of_text|>",
    ),
    "smolvlm": Form(
        "bytes",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *IDEFICS),
        COLON.replace("START", "<|im_start|>"),
        bos="<|im_start|>",
        eos="<end_of_utterance>",
        pad="<|im_end|>",
    ),
    "paligemma": Form(
        "bare",
        ("<pad>", "<eos>", "<bos>", "<unk>", "<image>"),
        None,
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        unk="<unk>",
        named={"image_token": "<image>"},
    ),
}


def processor(
    family: str, image_processor: Any, vocabulary: int = 512, tokens: str | None = None, **options: Any
) -> ProcessorMixin:
    """The processor of `family` around `image_processor`.

    Args:
        vocabulary: most ids that the tokenizer may have; `len(processor.tokenizer)` says how many it has. That of
            PaliGemma adds 1152 for places and masks, whatever is asked for.
        tokens: kind of tokenizer, see `_tiny_tokenizers`; None: that of the family's checkpoints.
        options: arguments of the processor's class, such as patch_size, image_seq_len or num_image_tokens.
    """
    form = FORMS[family]
    special = form.special if form.unk or tokens in (None, "bytes") else (*form.special, "<unk>")
    fast = _tokenizer(form, tokens or form.tokens, special, vocabulary)
    return load_processor.build(family, image_processor, fast, chat_template=form.template, **options)


def _tokenizer(form: Form, tokens: str, special: tuple[str, ...], vocabulary: int) -> PreTrainedTokenizerFast:
    made = tiny_tokenizers.build(tokens, special, vocabulary)
    if form.bos:
        made.post_processor = TemplateProcessing(
            single=f"{form.bos} $A", pair=f"{form.bos} $A $B", special_tokens=[(form.bos, special.index(form.bos))]
        )
    names = {"bos_token": form.bos, "eos_token": form.eos, "pad_token": form.pad}
    names["unk_token"] = "<unk>" if "<unk>" in special else None
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        **{name: token for name, token in names.items() if token},
        extra_special_tokens=form.named,
        clean_up_tokenization_spaces=False,
    )
