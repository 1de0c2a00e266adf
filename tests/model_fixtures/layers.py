# SPDX-License-Identifier: Apache-2.0
"""Decoder segments with the shapes of known models, exported without the values of their weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from secateur.bundle.manifest import GraphSpec
from secateur.bundle.symbolic_shape import resolve_shapes
from secateur.decoder import pieces
from secateur.engines.manifest import Profile, Range
from secateur.export.graphs import Graph
from secateur.export.interface import Interface
from secateur.export.segments import Segment
from secateur.export.targets import target
from secateur.export.to_onnx import to_onnx
from secateur.export.weights import WeightStore

SHAPES: dict[str, tuple[Any, Any, dict[str, int]]] = {
    "LLaVA-1.5-7B": (
        LlamaConfig,
        LlamaForCausalLM,
        {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32},
    ),
    "Qwen2.5-VL-3B": (  # its layers are Qwen2's
        Qwen2Config,
        Qwen2ForCausalLM,
        {"hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16, "num_key_value_heads": 2},
    ),
    "SmolVLM": (
        LlamaConfig,
        LlamaForCausalLM,
        {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 32},
    ),
}
FLOAT_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class Sparse(WeightStore):
    """Weight files of the right sizes, full of zeros."""

    def _write(self, file: str) -> None:
        places = [place for place in self._places.values() if place.file == file]
        with (self._folder / file).open("xb") as out:
            out.truncate(max(place.offset + place.size for place in places))


def segment(shape: str, layers: int, folder: Path, dtype: str = "fp16", reads: tuple[str, ...] = ()) -> GraphSpec:
    """Write the first `layers` layers of a model, of which more layers follow, to `folder`; return the graph.

    reads  what the next gates read of the last layer
    """
    make, model, sizes = SHAPES[shape]
    config = make(**sizes, num_hidden_layers=layers + 1, vocab_size=64, max_position_embeddings=8192)
    with torch.device("meta"):
        made = model(config).to(getattr(torch, FLOAT_TYPES[dtype]))
    kind, decoder = target("tensorrt", dtype), pieces.decoder(made.model, made.lm_head)
    dimensions = pieces.dimensions(config, 32)
    inputs, outputs = Interface(dimensions, 16, 16, FLOAT_TYPES[dtype]).segment(0, layers, reads)
    spec = GraphSpec("segment_0", "segment", "segment_0.onnx", tuple(inputs), tuple(outputs), (0, layers))
    folder.mkdir(parents=True, exist_ok=True)
    parts = {f"layer_{number}": layer for number, layer in enumerate(decoder.layers)}
    store = Sparse(folder, parts, inputs=True)
    weights = to_onnx(
        Graph(spec, Segment(decoder, 0, layers, reads, kind.decomposed)), folder / spec.file, kind.opset, store
    )
    return replace(spec, weights=weights)


def fixed(spec: GraphSpec, past: int, new: int, batch: int = 1) -> Profile:
    """Return the profile of one shape: `batch` samples, `past` cached rows and `new` rows."""
    shapes = resolve_shapes(spec.inputs, {"B": batch, "P": past, "S": new})
    dynamic = [x.name for x in spec.inputs if any(isinstance(size, str) for size in x.shape)]
    return Profile("fixed", {name: Range(shapes[name], shapes[name], shapes[name]) for name in dynamic})


def least_bytes(spec: GraphSpec, past: int, new: int) -> int:
    """Return the bytes of all inputs, weights and outputs: each is read or written once."""
    tensors = (*spec.all_inputs, *spec.outputs)
    shapes = resolve_shapes(tensors, {"B": 1, "P": past, "S": new})
    sizes = {"float16": 2, "bfloat16": 2, "int64": 8}
    return sum(math.prod(shapes[x.name]) * sizes[x.dtype] for x in tensors)
