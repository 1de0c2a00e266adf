# SPDX-License-Identifier: Apache-2.0
"""Small models with and without a class token, and vision modules run in ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, SiglipVisionConfig

from secateur.bundle.manifest import GraphSpec, TensorSpec
from secateur.checkpoints import tiny_model
from secateur.export.graphs import Graph
from secateur.export.to_onnx import to_onnx
from secateur.families import llava
from secateur.families.base import Family


def siglip_family(image_size: int = 24, head: bool = True) -> llava.Family:
    """A random LLaVA whose vision encoder has no class token."""
    vision = SiglipVisionConfig(**tiny_model.VISION, image_size=image_size, patch_size=4, vision_use_head=head)
    sizes = {"num_hidden_layers": 2, "num_key_value_heads": 4, "vocab_size": 64, "max_position_embeddings": 256}
    return llava.Family.random(vision, LlamaConfig(**tiny_model.TEXT | sizes))


def tower_of(family: Family) -> Any:
    return family.model.model.vision_tower


def pixels_of(family: Family, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, *family.bucket, generator=torch.Generator().manual_seed(seed))


def written(module: nn.Module, family: Family, outputs: dict[str, Tensor], opset: int, folder: Path) -> tuple[Any, int]:
    """Export a vision module and compare it with torch on another batch; return its operator counts and file size."""
    pixels = TensorSpec("pixel_values", "float32", ("B", 3, *family.bucket))
    specs = tuple(
        TensorSpec(name, str(x.dtype).removeprefix("torch."), ("B", *x.shape[1:])) for name, x in outputs.items()
    )
    path = folder / "vision.onnx"
    to_onnx(Graph(GraphSpec("vision", "vision", path.name, (pixels,), specs), module), path, opset)
    fed = pixels_of(family, batch=3, seed=1)
    got = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"pixel_values": fed.numpy()}
    )
    expected = module(fed)
    for ours, wanted in zip(got, expected if isinstance(expected, tuple) else (expected,), strict=True):
        np.testing.assert_allclose(ours, wanted.numpy(), rtol=1e-4, atol=1e-4)
    found = Counter(node.op_type for node in onnx.load(path).graph.node)
    return found, sum(file.stat().st_size for file in folder.iterdir())
