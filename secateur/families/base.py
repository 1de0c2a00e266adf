# SPDX-License-Identifier: Apache-2.0
"""Base class of the model families: pieces of a transformers model, prompt and preprocessing.

A family deals with transformers modules, not with pruning methods. Its file is named after the `model_type` of its
checkpoints.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from secateur.bundle.layout import Dimensions, Layout, ModelIdentity, View
from secateur.bundle.preprocess import Preprocess
from secateur.bundle.prompt import Prompt
from secateur.bundle.sampling import Sampling
from secateur.checkpoints import chat_template, generation, load_processor, tiny_model
from secateur.checkpoints.tiny_model import TinyTokenizer
from secateur.checkpoints.weights import fingerprint, read_model, reset_settings
from secateur.decoder import pieces
from secateur.decoder.check import check_structure, entry_scale
from secateur.decoder.pieces import Decoder, scaled
from secateur.errors import BadModel
from secateur.vision.preprocessing import StepsFunction, preprocess

Size = tuple[int, int]
AnyFamily = TypeVar("AnyFamily", bound="Family")


class Family(ABC):
    """A loaded model for one image size and number of images; both are fixed in every exported graph.

    model, processor  transformers' own
    source            the model as the user named it: "demo", a directory or a hub id
    image_size        (height, width) of the canvas that an image is fitted to; None: the family's default
    images            number of images in the first turn of a conversation
    system            system prompt, if the chat template has a place for it
    fit               how an image is fitted to the canvas, see runtime.preprocess; None: the family's default
    """

    architecture: ClassVar[type[PreTrainedModel]]
    """The transformers class of its checkpoints."""
    image_processors: ClassVar[Mapping[str, StepsFunction]]
    """Function that returns the preprocessing steps, by class name of the image processor without backend suffix."""
    tiny_tokenizer: ClassVar[TinyTokenizer]
    """Tokenizer and chat template of the processor that `tiny` makes."""
    has_template: ClassVar[bool] = True
    """Whether its processor has a chat template; without one, a conversation has a single question."""

    image_size: Size | None = None
    images: int = 1
    system: str = ""
    fit: str | None = None

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, source: str) -> None:
        reset_settings(model.config)
        self.model: Any = model.eval()
        self.processor: Any = processor
        self.tokenizer: PreTrainedTokenizerFast = self.processor.tokenizer
        self.source = source
        self.unread: tuple[Any, ...] = getattr(model, "unread", ())  # tensors of the checkpoint that it does not have
        model.requires_grad_(False)
        embeddings: Any = model.get_input_embeddings()
        chat_template.check_vocabulary(self.tokenizer, embeddings.weight.shape[0], self.image_token_id)
        self.check_processor()

    def check_processor(self) -> None:  # noqa: B027  # most processors count tokens by the image alone
        """Check that the processor's settings fit those of the model.

        Raises:
            BadModel: one does not; names the setting and its right value.
        """

    @classmethod
    def from_pretrained(cls, path: str, source: str) -> Family:
        """Load a checkpoint directory in its stored dtype; the weights of a large checkpoint stay in its files.

        Raises:
            BadModel: see `read_model`, `load_processor.read` and `check_structure`.
        """
        config: Any = cls.architecture.config_class
        model = read_model(cls.architecture, Path(path), check_structure)
        return cls(model, load_processor.read(config.model_type, path), source)

    def at(self, image_size: Size | None = None, images: int = 1, system: str = "", fit: str | None = None) -> Family:
        """Return the same model for another image size and number of images; the weights are shared."""
        other = copy.copy(self)
        for name in ("conversation", "preprocess", "layout", "identity"):
            other.__dict__.pop(name, None)
        other.image_size, other.images, other.system, other.fit = image_size, images, system, fit
        return other

    @classmethod
    @abstractmethod
    def tiny(cls, seed: int = 0) -> Family:
        """Return a random four-layer model with a working processor, for tests; reads no file."""

    @classmethod
    def tiny_processor(cls, image_processor: Any, **options: Any) -> Any:
        """Return a processor for `tiny`; `options` are those of `tiny_model.processor`."""
        config: Any = cls.architecture.config_class
        return tiny_model.processor(config.model_type, cls.tiny_tokenizer, image_processor, **options)

    @classmethod
    def from_config(cls: type[AnyFamily], processor: ProcessorMixin, seed: int = 0, **config: Any) -> AnyFamily:
        """Return a model with random weights; `config` are the fields of its configuration."""
        made: Any = cls.architecture.config_class
        return cls(tiny_model.random_model(cls.architecture, made(**config), seed), processor, "random")

    @property
    @abstractmethod
    def bucket(self) -> Size:
        """(height, width) of the canvas that an image is fitted to.

        Raises:
            BadModel: the family does not support `image_size`; the message lists supported sizes.
        """

    @property
    @abstractmethod
    def grids(self) -> tuple[Size, ...]:
        """(rows, columns) of each view of one image, in the order of its tokens in the prompt."""

    @property
    def views(self) -> tuple[View, ...]:
        """Views of one image, in units of vision tokens; override if views are not contiguous."""
        views, start = [], 0
        for rows, columns in self.grids:
            views.append(View(start, rows * columns, (rows, columns)))
            start = views[-1].end
        return tuple(views)

    @property
    def pixels(self) -> tuple[int, ...]:
        """Shape of one image's pixel values: (3, h, w) or (tiles, 3, h, w)."""
        return (3, *self.bucket)

    @abstractmethod
    def vision(self, reads: tuple[str, ...] = (), grid: Size | None = None) -> nn.Module:
        """Vision encoder: pixel_values [B, *pixels] fp32 -> features [B, n, Dv], planes [B, n, D], scores.

        n is the number of tokens of one image. `reads` names the scores, see `selection.selector.Selector`. Without
        planes and scores, the module returns one tensor. With `grid`, the graph first downsamples the image to that
        many rows and columns of patches, and returns features [B, k, Dv] and vision_index [B, k] int64: the place of
        each on the full grid, ascending.

        Raises:
            BadModel: the encoder does not have such a score, or does not support smaller images.
            BadSchedule: the grid is larger than the image's.
        """

    def own_projector(self) -> nn.Module:
        """The model's projector: features [B, n, Dv] -> vision_tokens [B, n, D], row by row."""
        projector: nn.Module = self.model.model.multi_modal_projector
        return projector

    @cached_property
    def entry_scale(self) -> float:
        """Factor that the decoder applies to all rows before its first layer; 1 for most."""
        return entry_scale(self.model.get_decoder())

    def projector(self) -> nn.Module:
        """Projector, as the first layer sees its rows: features [B, n, Dv] -> vision_tokens [B, n, D]."""
        return scaled(self.own_projector(), self.entry_scale)

    def embed(self) -> nn.Module:
        """Embedding, as the first layer sees its rows: input_ids [B, T] -> hidden_states [B, T, D]."""
        return scaled(self.decoder.embed, self.entry_scale)

    @property
    def decoder(self) -> Decoder:
        return pieces.decoder(self.model.model.language_model, self.model.lm_head)

    @property
    @abstractmethod
    def dimensions(self) -> Dimensions: ...

    @property
    def vision_config(self) -> Any:
        """transformers' configuration of the vision encoder."""
        return self.model.config.vision_config

    @property
    def patch_key_width(self) -> int:
        """dk, width of an attention head of the vision encoder."""
        return int(self.vision_config.hidden_size // self.vision_config.num_attention_heads)

    def inputs(self, input_ids: Tensor, pixel_values: NDArray[np.float32]) -> dict[str, Tensor]:
        """Arguments of transformers' `forward` and `generate` for one prompt.

        input_ids [1, S] contains all image tokens; pixel_values [images, *pixels] is preprocessed.
        """
        return {"input_ids": input_ids, "pixel_values": torch.from_numpy(pixel_values)}

    def position_ids(self, input_ids: Tensor) -> Tensor | None:
        """Positions [A, S] of a prompt [1, S] on each rotary axis; None: 0, 1, 2, ..."""
        return None

    @property
    def image_token_id(self) -> int:
        """Token id of every vision token in a prompt."""
        return int(self.model.config.image_token_id)

    @property
    def name(self) -> str:
        """Name of the family: the name of its file."""
        return type(self).__module__.rpartition(".")[2]

    @cached_property
    def conversation(self) -> chat_template.ChatTemplate:
        """Parts of the prompt, split by the chat template."""
        stop = self.model.generation_config.eos_token_id
        stop = self.tokenizer.eos_token_id if stop is None else stop
        return chat_template.conversation(
            self.processor,
            self.image_token_id,
            self.bucket,
            (stop,) if isinstance(stop, int) else tuple(stop),
            images=self.images,
            system=self.system,
            has_template=self.has_template,
        )

    @cached_property
    def generation(self) -> tuple[Sampling, tuple[str, ...]]:
        """The checkpoint's settings for answers, and warnings of those that a bundle does not follow."""
        return generation.settings(self.model.generation_config, self.dimensions.vocabulary)

    @property
    def prompt(self) -> Prompt:
        return replace(self.conversation.prompt, sampling=self.generation[0])

    @cached_property
    def preprocess(self) -> Preprocess:
        return preprocess(self.processor, self.image_processors, self.bucket, self.fit)

    @cached_property
    def layout(self) -> Layout:
        ids = list(self.conversation.head_ids)
        rows = [row for row, token in enumerate(ids) if token == self.image_token_id]
        chat_template.check_image_tokens(len(rows), self.images * sum(a * b for a, b in self.grids))
        views, each = [], len(rows) // self.images
        for image in range(self.images):
            for view in self.views:
                own = rows[image * each + view.start : image * each + view.end]
                if own[-1] - own[0] != len(own) - 1:
                    raise BadModel(f"the processor puts text into a view of {view.grid[0]} x {view.grid[1]} tokens")
                views.append(replace(view, start=own[0]))
        text = [token for token in ids if token != self.image_token_id]
        found = self.position_ids(torch.tensor([[*ids, self.prompt.pad]]))
        positions = () if found is None else tuple(tuple(axis[:-1]) for axis in found.tolist())
        question = len(ids) if found is None else int(found[0, -1])
        return Layout(tuple(text), tuple(views), self.images, positions, question, self.bucket)

    @torch.inference_mode()
    def logits(self, input_ids: Sequence[int], pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits [V] fp32 of the last row from transformers' forward pass, the reference for the segments.

        input_ids contains all rows, the question included; pixel_values [images, *pixels].
        """
        given = self.inputs(torch.tensor([list(input_ids)]), pixel_values)
        out = self.model(**{k: v.to(self.dtype) if v.is_floating_point() else v for k, v in given.items()})
        last: NDArray[np.float32] = out.logits[0, -1].float().numpy()
        return last

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype

    def to(self, dtype: torch.dtype) -> None:
        """Cast the weights. Buffers keep their precision: rotary frequencies must not be rounded.

        The identity remains that of the loaded weights, so a schedule fits every dtype.
        """
        _ = self.fingerprint
        for weight in self.model.parameters():
            weight.data = weight.data.to(dtype)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.model)

    @cached_property
    def identity(self) -> ModelIdentity:
        layout = self.layout
        return ModelIdentity(
            self.name, self.dimensions.layers, layout.vision_tokens, self.fingerprint, layout.size, layout.images
        )
