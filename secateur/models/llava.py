# SPDX-License-Identifier: Apache-2.0
"""LLaVA-1.5 and its kin: a ViT, a two-layer projector, and a decoder of the Llama kind (Vicuna, Mistral, Qwen2).

The decoder must go through transformers' AttentionInterface and do nothing beside its layers; the check after an
export compares it with the model's own forward pass. Liu et al., "Improved Baselines with Visual Instruction
Tuning", arXiv 2310.03744.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from secateur.artifacts import Dimensions, Layout
from secateur.errors import BadModel
from secateur.models import _processing, base
from secateur.models._downsampled import Downsampled
from secateur.models._vision import Vision
from secateur.runtime.preprocess import Preprocess
from secateur.runtime.prompt import Prompt

ROPE_TYPES = ("default", "linear", "llama3", "yarn")


class Family(base.Family):
    model: LlavaForConditionalGeneration

    @classmethod
    def from_pretrained(cls, path: str, source: str) -> Family:
        model = base.load_weights(LlavaForConditionalGeneration, path)
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
        if not getattr(processor, "chat_template", None):
            raise BadModel(f"model '{source}' has no chat template; add chat_template.jinja beside its config.json")
        stop = model.generation_config.eos_token_id
        stop = processor.tokenizer.eos_token_id if stop is None else stop
        prompt = _processing.prompt(
            lambda messages: str(processor.apply_chat_template(messages, add_generation_prompt=True)),
            processor.tokenizer,
            model.config.image_token_id,
            (stop,) if isinstance(stop, int) else tuple(stop),
        )
        return cls(model, processor.tokenizer, prompt, _processing.preprocess(processor.image_processor), source)

    @classmethod
    def tiny(cls, seed: int = 0) -> Family:
        vision = CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=24,
            patch_size=4,
        )
        text = LlamaConfig(
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=64,
            max_position_embeddings=256,
        )
        return cls.random(vision, text, seed)

    @classmethod
    def random(cls, vision: CLIPVisionConfig | SiglipVisionConfig, text: LlamaConfig, seed: int = 0) -> Family:
        """A model of random weights with a tokenizer of made-up words: <pad> <s> </s> <image> <unk> ... w0 w1 w2 ..."""
        text.pad_token_id, text.bos_token_id, text.eos_token_id = 0, 1, 2
        config = LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=3,
            vision_feature_select_strategy="default" if isinstance(vision, CLIPVisionConfig) else "full",
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = LlavaForConditionalGeneration(config)
            for weight in model.parameters():  # spread enough for attention and logits to mean something
                weight.data.normal_(std=1.4 * weight.shape[-1] ** -0.5) if weight.dim() > 1 else weight.data.uniform_(
                    0.5, 1.5
                )
        words = ["<pad>", "<s>", "</s>", "<image>", "<unk>", "user", "assistant"]
        words += [f"w{i}" for i in range(text.vocab_size - len(words))]
        tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            additional_special_tokens=["<image>"],
        )
        prompt = Prompt(head=(1, 5), first=(" ", " assistant"), next=(" </s> user ", " assistant"), stop=(2,), pad=0)
        edge = vision.image_size
        assert isinstance(edge, int)
        preprocess = Preprocess((edge, edge), "bicubic", None, 1 / 255, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        return cls(model, fast, prompt, preprocess, "random")

    def vision(self, reads: tuple[str, ...] = (), grid: tuple[int, int] | None = None) -> nn.Module:
        layers = self.model.config.vision_feature_layer
        feature_layers = [layers] if isinstance(layers, int) else list(layers)
        tower, class_tokens = self.model.model.vision_tower, int(self.dimensions.class_token)
        if grid is None:
            return Vision(tower, feature_layers, class_tokens, reads)
        return Downsampled(tower, feature_layers, class_tokens, grid)

    def projector(self) -> nn.Module:
        projector: nn.Module = self.model.model.multi_modal_projector
        return projector

    @property
    def decoder(self) -> base.Decoder:
        text: Any = self.model.model.language_model
        return base.Decoder(text.config, text.embed_tokens, text.layers, text.rotary_emb, text.norm, self.model.lm_head)

    @property
    def dimensions(self) -> Dimensions:
        text: Any = self.model.config.text_config
        rope = (text.rope_parameters or {}).get("rope_type", "default")
        if rope not in ROPE_TYPES:
            raise BadModel(f"rotary type '{rope}' depends on the live length; supported: {', '.join(ROPE_TYPES)}")
        window = getattr(text, "sliding_window", None) or text.max_position_embeddings
        heads = text.num_attention_heads
        return Dimensions(
            layers=text.num_hidden_layers,
            width=text.hidden_size,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            mlp_width=text.intermediate_size,
            vocabulary=text.vocab_size,
            context=min(text.max_position_embeddings, window),  # within the window it is plain causal attention
            vision_width=self.model.model.multi_modal_projector.linear_1.in_features,
            class_token=self._class_token,
        )

    @property
    def patch_key_width(self) -> int:
        return int(self._tower.hidden_size // self._tower.num_attention_heads)

    @property
    def _tower(self) -> Any:
        return self.model.config.vision_config

    @property
    def _class_token(self) -> bool:
        return bool(self._tower.model_type == "clip_vision_model")

    @property
    def image_size(self) -> tuple[int, int]:
        size = self._tower.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def layout(self) -> Layout:
        patch = self._tower.patch_size
        rows, columns = (edge // patch for edge in self.image_size)
        if self._class_token != (self.model.config.vision_feature_select_strategy == "default"):
            raise BadModel("the class token must be left out: set vision_feature_select_strategy to 'default' for CLIP")
        return Layout(image_start=len(self.prompt.head), vision_tokens=rows * columns, grid=(rows, columns))
