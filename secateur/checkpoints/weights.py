# SPDX-License-Identifier: Apache-2.0
"""Weights of a checkpoint, and the hash that identifies a model."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from secateur.checkpoints.checkpoint import Checkpoint
from secateur.checkpoints.inventory import extra_tensors
from secateur.checkpoints.streaming import Check, fill, stream, unchecked, value
from secateur.errors import BadModel
from secateur.machine import free_memory

PASSING = {"dtype", "torch_dtype", "transformers_version", "architectures", "use_cache", "output_attentions"}
PASSING |= {"attn_implementation", "attention_implementation", "use_flash_attn", "use_flash_attention_2", "torchscript"}
"""Settings that are not part of the fingerprint: they say how a model runs, and not what it computes."""
USUAL = {"return_dict": True, "output_hidden_states": False, "output_attentions": False, "chunk_size_feed_forward": 0}
"""Further ones, and the values that transformers gives every model; others would change the type of its outputs."""
STREAMED = 1 << 30
"""Size in bytes above which the weights of a checkpoint stay in its files and are read when a module runs."""
Model = TypeVar("Model", bound=PreTrainedModel)


def fingerprint(model: PreTrainedModel) -> str:
    """Return a hash of the configuration and of names, shapes and values of all weights.

    Weights are hashed as fp32; sharding, stored dtype and source make no difference.
    """
    digest = hashlib.sha256(json.dumps(_lasting(model.config.to_dict()), sort_keys=True, default=str).encode())
    for name, weight in sorted(model.state_dict(keep_vars=True).items()):
        digest.update(f"{name} {tuple(weight.shape)} ".encode())
        digest.update(value(weight).to(torch.float32).contiguous().numpy().data)
    return f"sha256:{digest.hexdigest()}"


def reset_settings(config: PretrainedConfig) -> None:
    """Set the settings in `USUAL` of a configuration and its parts, whatever the checkpoint says."""
    for name, usual in USUAL.items():
        if getattr(config, name, usual) != usual:
            setattr(config, name, usual)
    for name in config.sub_configs:
        if isinstance(part := getattr(config, name, None), PretrainedConfig):
            reset_settings(part)


def _lasting(config: Any) -> Any:
    """Return a configuration without settings that do not affect the model's results."""
    if not isinstance(config, dict):
        return config
    return {k: _lasting(v) for k, v in config.items() if k not in PASSING and str(k)[:1] != "_"}


def read_model(cls: type[Model], folder: Path, check: Check = unchecked) -> Model:
    """Load `cls` in its stored dtype; the weights of a large checkpoint stay in its files.

    check  sees the model before any weight is read

    Raises:
        BadModel: see `streaming.stream`, `load_weights` and `check_fits`.
    """
    large = sum(file.stat().st_size for file in folder.glob("*.safetensors")) > STREAMED
    model = (stream if large else fill)(cls, folder, check)
    if large and model is None:
        check_fits(folder)
    return model or load_weights(cls, str(folder))


def load_weights(cls: type[Model], path: str) -> Model:
    """Load `cls` with transformers, for checkpoints whose weights it converts: safetensors only, no remote code.

    Raises:
        BadModel: weights are missing or have another shape (transformers would replace them by random ones).
    """
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # its warnings become errors below
    try:
        loaded: Any = cls.from_pretrained(
            path,
            dtype="auto",
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="sdpa",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
    model, report = loaded
    lost = sorted({str(key) for kind in ("missing_keys", "mismatched_keys") for key in report[kind]})
    if lost:
        raise BadModel(f"model '{path}' lacks {len(lost)} weights, the first is {lost[0]}; download it again")
    model.unread = extra_tensors(report["unexpected_keys"], model, path)
    found: Model = model
    return found


def check_fits(folder: Path) -> None:
    """Check that a large checkpoint fits into memory before transformers loads and converts it.

    Raises:
        BadModel: in fp32 it is larger than the free memory.
    """
    needed = sum(4 * math.prod(entry.shape) for entry in Checkpoint.open(folder).tensors.values())
    free = free_memory()
    if free is not None and needed > free:
        raise BadModel(
            f"model '{folder}' is stored in a form that transformers converts as a whole, which takes "
            f"{needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free; where there is more, save it "
            "again with transformers' save_pretrained(FOLDER, save_original_format=False)"
        )
