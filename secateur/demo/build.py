# SPDX-License-Identifier: Apache-2.0
"""Untrained demo model: a small LLaVA-1.5 with tokenizer, image processor and chat template.

CLIP tower 96x96, patch 8 (144 vision tokens), 5 layers x 128, read at layer -2; two-layer projector; Llama decoder of
16 layers x 128 with 4 query and 2 key/value heads. It is deep and narrow, so that pruning after an early layer saves
most of the decoder's work, and the model understands a question in its first half.
"""

import torch
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from secateur.demo._render import SIZE
from secateur.demo.scenes import COLOR_WORDS, DIGIT_WORDS, POSITION_WORDS

__all__ = ["CHAT_TEMPLATE", "PATCH", "VOCABULARY", "build_model", "build_processor"]

PATCH = 8  # pixels
WIDTH = 128
TOWER_LAYERS = 5
DECODER_LAYERS = 16

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
FRAME = ("user", "assistant", ":", "?", ";", "\n")
GRAMMAR = ("what", "where", "how", "many", "is", "are", "there", "the", "a", "at", "color", "digit", "digits")
ANSWERS = ("yes", "no")
VOCABULARY = SPECIAL + FRAME + GRAMMAR + ANSWERS + DIGIT_WORDS + COLOR_WORDS + POSITION_WORDS

CHAT_TEMPLATE = """\
{{ bos_token }}\
{% for message in messages %}\
{% if message['role'] == 'user' %}\
{{ 'USER: ' }}\
{% if message['content'] is string %}\
{{ message['content'] }}\
{% else %}\
{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}\
{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}\
{% endif %}\
{{ ' ' }}\
{% elif message['role'] == 'assistant' %}\
{{ 'ASSISTANT: ' }}\
{% if message['content'] is string %}\
{{ message['content'] }}\
{% else %}\
{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}\
{% endif %}\
{{ eos_token }}\
{% endif %}\
{% endfor %}\
{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of lower-case words. "top-left" is one word; punctuation and the line break are words too."""
    model = WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    # Text that the pattern does not match (spaces, tabs) is dropped.
    word = Regex(r"[a-z]+(-[a-z]+)*|[0-9]+|\n|[^\sa-z0-9]")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(word, "removed", invert=True)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def build_processor() -> LlavaProcessor:
    """Return tokenizer, PIL image processor (without torchvision) and chat template as one processor."""
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": SIZE},
            crop_size={"height": SIZE, "width": SIZE},
        ),
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )


def build_model(seed: int = 0) -> LlavaForConditionalGeneration:
    """Return the model with seeded random weights, fp32. torch's global random state is not changed."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=TOWER_LAYERS,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=DECODER_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        # With the usual 0.02, the output of the layers is too small at this width and depth for learning to start.
        initializer_range=0.06,
        pad_token_id=VOCABULARY.index("<pad>"),
        bos_token_id=VOCABULARY.index("<s>"),
        eos_token_id=VOCABULARY.index("</s>"),
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=VOCABULARY.index("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(SIZE // PATCH) ** 2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            for branch in (layer.self_attn.o_proj, layer.mlp.down_proj):
                branch.weight.div_((2 * DECODER_LAYERS) ** 0.5)
    model.train(False)
    return model
