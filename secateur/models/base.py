# SPDX-License-Identifier: Apache-2.0
"""What a model family is: the pieces of a transformers model that become graphs, its prompt and its preprocessing.

A family knows transformers modules, not methods. Its file is named after the checkpoint's `model_type`.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from secateur import models, plugins
from secateur.artifacts import Dimensions, Layout, ModelIdentity
from secateur.errors import BadModel
from secateur.models._projections import Projections
from secateur.runtime.preprocess import Preprocess
from secateur.runtime.prompt import Prompt

DEMO = "demo"
PASSING = ("dtype", "torch_dtype", "transformers_version", "architectures", "use_cache", "output_attentions")
Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass(frozen=True)
class Decoder:
    """The language model in pieces, as transformers' decoder-only classes name them."""

    config: PreTrainedConfig
    embed: nn.Module
    layers: nn.ModuleList
    rotary: nn.Module
    norm: nn.Module
    head: nn.Module

    def projections(self, layer: int) -> Projections:
        """Norm, query and key projections of decoder layer `layer`.

        Raises:
            BadModel: the layer is not of the Llama kind.
        """
        return Projections(self.layers[layer], self.rotary)


class Family(ABC):
    """One loaded model. `source` is what the user called it: "demo", a directory or a hub id."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        prompt: Prompt,
        preprocess: Preprocess,
        source: str,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.preprocess = preprocess
        self.source = source
        model.requires_grad_(False)

    @classmethod
    @abstractmethod
    def from_pretrained(cls, path: str, source: str) -> Family:
        """Load a checkpoint directory or hub id, in the dtype it is stored in."""

    @classmethod
    @abstractmethod
    def tiny(cls, seed: int = 0) -> Family:
        """A random model of four layers with a working tokenizer, for tests; no file is read."""

    @abstractmethod
    def vision(self, reads: tuple[str, ...] = (), grid: tuple[int, int] | None = None) -> nn.Module:
        """pixel_values [B, 3, h, w] fp32 -> features [B, N, Dv], then one score for each name in `reads`.

        Without reads the module returns the bare tensor. The names are those of `methods.base.Selector`.
        With `grid` the image is first made smaller within the graph, to that many rows and columns of patches; the
        module returns features [B, k, Dv] and vision_index [B, k] int64, ascending: the place of each on the full grid.

        Raises:
            BadModel: the encoder lacks such a score, or cannot take a smaller image.
            BadSchedule: the grid is larger than the image's.
        """

    @abstractmethod
    def projector(self) -> nn.Module:
        """features [B, n, Dv] -> vision_tokens [B, n, D], row by row."""

    @property
    @abstractmethod
    def decoder(self) -> Decoder: ...

    @property
    @abstractmethod
    def dimensions(self) -> Dimensions: ...

    @property
    @abstractmethod
    def patch_key_width(self) -> int:
        """dk, width of an attention head of the vision encoder."""

    @property
    @abstractmethod
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the pixels that `vision` takes."""

    @property
    @abstractmethod
    def layout(self) -> Layout: ...

    @property
    def name(self) -> str:
        """The family's name: its file's name."""
        return type(self).__module__.rpartition(".")[2]

    @torch.inference_mode()
    def logits(self, input_ids: Sequence[int], pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits [V] fp32 of the last row, by the model's own forward pass: what segments must equal.

        input_ids holds head, one image token a vision row, tail.
        """
        pixels = torch.from_numpy(pixel_values).to(self.dtype)
        out = self.model(input_ids=torch.tensor([list(input_ids)]), pixel_values=pixels)
        last: NDArray[np.float32] = out.logits[0, -1].float().numpy()
        return last

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype

    def to(self, dtype: torch.dtype) -> None:
        """Cast the weights. Buffers keep their precision: rotary frequencies must not be rounded.

        The identity stays that of the weights as they were loaded, so a schedule fits every dtype.
        """
        _ = self.identity
        for weight in self.model.parameters():
            weight.data = weight.data.to(dtype)

    @cached_property
    def identity(self) -> ModelIdentity:
        return ModelIdentity(self.name, self.dimensions.layers, self.layout.vision_tokens, fingerprint(self.model))


def fingerprint(model: PreTrainedModel) -> str:
    """Hash of the configuration and of names, shapes and values of all weights.

    Read as fp32; sharding, storage type and the place it came from do not count.
    """
    digest = hashlib.sha256(json.dumps(_lasting(model.config.to_dict()), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().to(torch.float32).contiguous().numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def load(source: str = DEMO, dtype: torch.dtype = torch.float32) -> Family:
    """Load the demo model, a local checkpoint directory or a hub id; safetensors only, no remote code.

    Raises:
        BadModel: the checkpoint is missing, incomplete, holds pickles only, or is of a family that is not supported.
    """
    path = source
    if source == DEMO:
        from secateur.demo import model_directory

        path = str(model_directory())
    elif not Path(path).exists() and ("/" not in path or path.count("/") > 1 or path[0] in "./~"):
        raise BadModel(
            f"model '{source}' is neither a directory nor a hub id; use 'demo', a path, or organisation/name"
        )
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as problem:
        raise BadModel(f"model '{source}' cannot be read: {_first_line(problem)}") from None
    if config.model_type not in plugins.names(models):
        raise BadModel(
            f"model '{source}' is a '{config.model_type}'; supported: {', '.join(plugins.names(models))}. "
            f"To add it, create secateur/models/{config.model_type}.py."
        )
    family: type[Family] = plugins.load(models, config.model_type, "model family").Family
    try:
        loaded = family.from_pretrained(path, source)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as problem:
        if isinstance(problem, BadModel):
            raise
        raise BadModel(f"model '{source}' cannot be loaded: {_first_line(problem)}") from None
    loaded.to(dtype)
    return loaded


def _lasting(config: Any) -> Any:
    """A configuration without what does not change the model's function."""
    if not isinstance(config, dict):
        return config
    return {k: _lasting(v) for k, v in config.items() if k not in PASSING and str(k)[:1] != "_"}


def load_weights(cls: type[Model], path: str) -> Model:
    """`cls` with the weights of a checkpoint: safetensors only, no remote code, and every weight must be there.

    Raises:
        BadModel: weights are missing or of another shape (transformers would make them up).
    """
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        loaded: Any = cls.from_pretrained(
            path,
            dtype="auto",
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    finally:
        if shown:
            logging.enable_progress_bar()
    model, report = loaded
    lost = sorted({str(key) for kind in ("missing_keys", "mismatched_keys") for key in report[kind]})
    if lost:
        raise BadModel(f"model '{path}' lacks {len(lost)} weights, the first is {lost[0]}; download it again")
    found: Model = model
    return found


def _first_line(problem: BaseException) -> str:
    lines = str(problem).strip().splitlines()
    return lines[0] if lines else type(problem).__name__
