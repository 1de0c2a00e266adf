# SPDX-License-Identifier: Apache-2.0
"""Models of benchmarks/gpu.py: the shapes of LLaVA-1.5-7B and Qwen2.5-VL-7B, or tiny ones, with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaConfig, Qwen2_5_VLConfig

from secateur.bundle.schedule import Schedule
from secateur.checkpoints.tiny_model import random_model
from secateur.families import llava, qwen2_5_vl
from secateur.families.base import Family
from secateur.methods import fastv
from secateur.selection.budget import BudgetRequest
from secateur.selection.statistics import Statistics
from tests.full_size import PATCH, config, llava_processor, qwen_config, qwen_processor

MODELS = ("llava", "qwen2_5_vl")
EDGES = {"llava": 336, "qwen2_5_vl": 672}
"""Pixels of the square image: 24 x 24 vision tokens in both models."""
QUESTION = 32
"""Text tokens after the prompt's template."""
TINY_LAYERS, TINY_EDGES, TINY_VOCABULARY = 12, {"llava": 6 * PATCH, "qwen2_5_vl": 12 * PATCH}, 512
TINY_TEXT = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": TINY_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "vocab_size": TINY_VOCABULARY,
    "layer_types": None,
}
TINY_VISION = {
    "llava": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2},
    "qwen2_5_vl": {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 48,
        "window_size": 4 * PATCH,
        "fullatt_block_indexes": [1],
    },
}


@dataclass(frozen=True)
class Workload:
    """A model on its device, and one prompt: an image and a question.

    ids     [1, S] token ids, vision tokens included
    pixels  [1, 3, h, w] fp32, preprocessed
    inputs  arguments of transformers' forward for the prompt
    """

    family: Family
    device: str
    ids: Tensor
    pixels: Tensor
    inputs: dict[str, Tensor]

    @property
    def rows(self) -> int:
        return self.ids.shape[1]


def workload(name: str, device: str, dtype: torch.dtype, tiny: bool, seed: int) -> Workload:
    """Return the model called `name`, with weights made on `device`, and a random prompt."""
    family = _family(name, device, dtype, tiny, seed)
    rng = np.random.default_rng(seed)
    vocabulary = family.dimensions.vocabulary
    question = rng.integers(vocabulary // 2, vocabulary, QUESTION).tolist()  # special tokens have low ids
    ids = torch.tensor([[*family.layout.ids(family.image_token_id), *question]])
    pixels = rng.standard_normal((1, *family.pixels), np.float32)
    inputs = {key: _placed(x, device, dtype) for key, x in family.inputs(ids, pixels).items()}
    return Workload(family, device, ids.to(device), torch.from_numpy(pixels).to(device), inputs)


def pruned(family: Family, compression: float) -> Schedule:
    """Return FastV's schedule: K = 2 of 32 layers, and as many tokens as the compression leaves."""
    measured = Statistics(family.identity, family.dimensions, family.layout, 0, 0)
    return fastv.Method().calibrate(measured, BudgetRequest(compression=compression))


def _family(name: str, device: str, dtype: torch.dtype, tiny: bool, seed: int) -> Family:
    edge = (TINY_EDGES if tiny else EDGES)[name]
    kind: type[Family] = (llava if name == "llava" else qwen2_5_vl).Family
    shape = _shape(name, edge, tiny)
    if name == "llava":
        processor = llava_processor(edge, shape.text_config.vocab_size)
    else:
        processor = qwen_processor(shape.text_config.vocab_size)
    with torch.device(device), default_dtype(dtype):
        model: Any = random_model(kind.architecture, shape, seed)
    family = kind(model, processor, "random").at((edge, edge))
    family.__dict__["fingerprint"] = "random"  # of weights that are in no file; to compute it takes a minute
    _ = family.entry_scale  # computed outside of torch.device
    return family


def _shape(name: str, edge: int, tiny: bool) -> Any:
    full: Any = config(edge=edge) if name == "llava" else qwen_config()
    if not tiny:
        return full
    fields = full.to_dict()
    fields["text_config"] |= TINY_TEXT
    fields["vision_config"] |= TINY_VISION[name]
    if name == "llava":
        return LlavaConfig(**fields)
    fields["text_config"]["rope_parameters"] |= {"mrope_section": [2, 2, 2]}
    return Qwen2_5_VLConfig(**fields)


def _placed(x: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    return x.to(device, dtype) if x.is_floating_point() else x.to(device)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Within the block, modules make their parameters in `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
