# SPDX-License-Identifier: Apache-2.0
"""Idefics3: SigLIP over tiles, pixel shuffle, and a Llama decoder.

Laurençon et al., "Building and better understanding vision-language models", arXiv 2408.12637.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil, PreTrainedModel

from secateur.bundle.layout import Dimensions
from secateur.checkpoints import tiny_model
from secateur.checkpoints.tiny_model import PARTS, TinyTokenizer
from secateur.decoder import pieces
from secateur.decoder.pieces import Decoder
from secateur.families import base
from secateur.vision.encoder import VisionEncoder
from secateur.vision.preprocessing import split_tiles
from secateur.vision.tiles import PixelShuffle, Tiles, refuse_downsampling

IMAGE_TOKENS = (
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)


def tokenizer(*special: str, bos: str, pad: str) -> TinyTokenizer:
    """Return a tokenizer with the chat template of Idefics3; `special` are the special tokens of the decoder."""
    template = (
        bos + "{% for m in messages %}{{ m['role'] | capitalize }}:"
        "{% if m['content'][0]['type'] == 'text' %} {% endif %}"
        + PARTS.replace("IMAGE", "<image>")
        + "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    return TinyTokenizer("bytes", (*special, *IMAGE_TOKENS), template, eos="<end_of_utterance>", pad=pad, bos=bos)


class Family(base.Family):
    """Idefics3, and the base of SmolVLM, which differs only in class names and special tokens.

    An image is split into tiles, row by row; the last one is the whole image, downsampled. Each tile is a view,
    and text tokens with its row and column come before it in the prompt.
    """

    architecture: ClassVar[type[PreTrainedModel]] = Idefics3ForConditionalGeneration
    images_by: ClassVar[Any] = Idefics3ImageProcessorPil
    """transformers' PIL image processor, for `tiny`."""
    image_processors = {"Idefics3ImageProcessor": split_tiles, "SmolVLMImageProcessor": split_tiles}
    tiny_tokenizer = tokenizer("<|begin_of_text|>", "<|end_of_text|>", bos="<|begin_of_text|>", pad="<|end_of_text|>")

    @classmethod
    def tiny(cls, seed: int = 0) -> base.Family:
        images = cls.images_by(size={"longest_edge": 48}, max_image_size={"longest_edge": 24})
        processor = cls.tiny_processor(images, image_seq_len=9)
        return cls.from_config(
            processor,
            seed,
            vision_config=tiny_model.VISION | {"image_size": 24, "patch_size": 4},
            text_config={"model_type": "llama"} | tiny_model.sizes(processor),
            image_token_id=processor.image_token_id,
        )

    @property
    def bucket(self) -> base.Size:
        size = self.processor.image_processor.size
        edge = size["longest_edge"]
        return self.image_size or ((edge, edge) if edge else (size["height"], size["width"]))

    @property
    def grids(self) -> tuple[base.Size, ...]:
        side = self._side // self.model.config.scale_factor
        return ((side, side),) * len(self.preprocess.tiles)

    @property
    def pixels(self) -> tuple[int, ...]:
        return (len(self.grids), 3, self._edge, self._edge)

    @property
    def _edge(self) -> int:
        """Edge of a tile in pixels."""
        return int(self.processor.image_processor.max_image_size["longest_edge"])

    @property
    def _side(self) -> int:
        """Edge of a tile in patches."""
        return int(self._edge // self._tower.config.patch_size)

    @property
    def _tower(self) -> Any:
        return self.model.model.vision_model

    def vision(self, reads: tuple[str, ...] = (), grid: base.Size | None = None) -> nn.Module:
        refuse_downsampling(grid)
        grid = (self._side, self._side)
        return Tiles(PixelShuffle(Tower(self._tower, self._edge, reads), grid, self.model.config.scale_factor, reads))

    def own_projector(self) -> nn.Module:
        projector: nn.Module = self.model.model.connector.modality_projection
        return projector

    @property
    def decoder(self) -> Decoder:
        return pieces.decoder(self.model.model.text_model, self.model.lm_head)

    @property
    def dimensions(self) -> Dimensions:
        width = self._tower.config.hidden_size * self.model.config.scale_factor**2
        return pieces.dimensions(self.model.config.text_config, width, class_token=False)

    def inputs(self, input_ids: Tensor, pixel_values: NDArray[np.float32]) -> dict[str, Tensor]:
        tiles = torch.from_numpy(pixel_values).flatten(0, 1)[None]
        return {
            "input_ids": input_ids,
            "pixel_values": tiles,
            "pixel_attention_mask": torch.ones(1, tiles.shape[1], *tiles.shape[-2:], dtype=torch.int64),
        }


class Tower(VisionEncoder):
    """Vision encoder for full tiles of `edge` x `edge` pixels, including its last norm.

    transformers derives the position of each patch from a mask of valid pixels. Tiles have no padding, so the
    positions are constants here.
    """

    position_ids: Tensor

    def __init__(self, tower: PreTrainedModel, edge: int, reads: tuple[str, ...] = ()) -> None:
        super().__init__(tower, (), 0, reads)
        self.register_buffer("position_ids", position_ids(tower, edge))

    def _features(self, pixel_values: Tensor) -> Tensor:
        tower: Any = self.tower
        patches: Tensor = tower.embeddings.patch_embedding(pixel_values.to(tower.post_layernorm.weight.dtype))
        rows = patches.flatten(2).transpose(1, 2) + tower.embeddings.position_embedding(self.position_ids)
        features: Tensor = tower.post_layernorm(tower.encoder(inputs_embeds=rows).last_hidden_state)
        return features


@torch.no_grad()
def position_ids(tower: PreTrainedModel, edge: int) -> Tensor:
    """Return [1, N] int64: index of the position embedding of each patch of a full tile.

    Runs transformers' code on embeddings of width 1, so that the model's weights need not be in memory.
    """
    config: Any = copy.deepcopy(tower.config)
    config.hidden_size = 1
    with torch.device("cpu"):
        embeddings: Any = type(tower.embeddings)(config)
    seen: list[Tensor] = []
    embeddings.position_embedding.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    side = edge // config.patch_size
    embeddings(
        torch.zeros(1, config.num_channels, edge, edge, device="cpu"),
        torch.ones(1, side, side, dtype=torch.bool, device="cpu"),
    )
    return seen[0]
