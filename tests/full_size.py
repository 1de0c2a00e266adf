# SPDX-License-Identifier: Apache-2.0
"""Write a checkpoint with the shape of LLaVA-1.5-7B or Qwen2.5-VL-7B and random weights, to measure size and memory:

    python -m tests.full_size FOLDER [--model llava] [--layers 32] [--edge 336] [--dtype fp16] [--shard 5000000000]

It has the files of save_pretrained: config, sharded safetensors with the names of the hub, index file, tokenizer,
processor and chat template. One tensor is in memory at a time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)
from transformers.core_model_loading import revert_weight_conversion

from secateur.checkpoints import tiny_model
from secateur.checkpoints.streaming import meta_parameters
from secateur.export.targets import DTYPES
from secateur.families import llava, qwen2_5_vl

STORED = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
PATCH = 14


def config(layers: int = 32, edge: int = 336) -> LlavaConfig:
    """Return the config of LLaVA-1.5-7B: CLIP ViT-L/14 at 336 pixels, and Llama with 32 layers."""
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=edge,
        patch_size=PATCH,
        projection_dim=768,
    )
    text = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32064,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)


def qwen_config(layers: int = 28) -> Qwen2_5_VLConfig:
    """Return the config of Qwen2.5-VL-7B: a ViT with windows, and Qwen2 with 28 layers."""
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    text = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": layers,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 128000,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    tokenizer: Any = qwen_processor(152064)
    return Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        tie_word_embeddings=False,
    )


def qwen_processor(vocabulary: int) -> ProcessorMixin:
    """Return a processor of Qwen2.5-VL with at most `vocabulary` ids."""
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 3584 * 3584})
    processor: ProcessorMixin = qwen2_5_vl.Family.tiny_processor(images, vocabulary=vocabulary)
    return processor


def llava_processor(edge: int, vocabulary: int) -> ProcessorMixin:
    """Return a processor of LLaVA-1.5 for images of `edge` pixels, with at most `vocabulary` ids."""
    images = CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge})
    return tiny_model.processor(
        "llava",
        llava.Family.tiny_tokenizer,
        images,
        vocabulary,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def write(
    folder: Path, model: PreTrainedConfig, dtype: torch.dtype = torch.float16, shard: int = 5_000_000_000, seed: int = 0
) -> int:
    """Write the checkpoint, and return the number of bytes of its weights."""
    folder.mkdir(parents=True)
    model.dtype = dtype
    architecture: type[PreTrainedModel] = (
        LlavaForConditionalGeneration if isinstance(model, LlavaConfig) else Qwen2_5_VLForConditionalGeneration
    )
    model.architectures = [architecture.__name__]
    model.save_pretrained(folder)
    GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2).save_pretrained(folder)
    parts: Any = model
    if isinstance(model, LlavaConfig):
        processor = llava_processor(parts.vision_config.image_size, parts.text_config.vocab_size)
    else:
        processor = qwen_processor(parts.text_config.vocab_size)
    processor.save_pretrained(folder)
    with meta_parameters():
        shapes = architecture(model)
    weights = {
        name: tuple(weight.shape) for name, weight in revert_weight_conversion(shapes, shapes.state_dict()).items()
    }
    torch.manual_seed(seed)
    return _write_weights(folder, weights, dtype, shard)


def _write_weights(folder: Path, weights: dict[str, tuple[int, ...]], dtype: torch.dtype, shard: int) -> int:
    sizes = {name: torch.Size(shape).numel() * dtype.itemsize for name, shape in weights.items()}
    groups: list[list[str]] = [[]]
    for name, size in sizes.items():
        if groups[-1] and sum(sizes[n] for n in groups[-1]) + size > shard:
            groups.append([])
        groups[-1].append(name)
    places = {}
    for number, names in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        places.update(dict.fromkeys(names, file))
        _write_shard(folder / file, {name: weights[name] for name in names}, sizes, dtype)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return sum(sizes.values())


def _write_shard(path: Path, weights: dict[str, tuple[int, ...]], sizes: dict[str, int], dtype: torch.dtype) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in weights.items():
        header[name] = {"dtype": STORED[dtype], "shape": shape, "data_offsets": [end, end + sizes[name]]}
        end += sizes[name]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for shape in weights.values():
            for piece in _values(shape):
                out.write(piece.to(dtype).view(torch.uint8).numpy().tobytes())


def _values(shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Yield random values in pieces: matrices scaled so that attention and logits are not uniform, vectors near one."""
    count = torch.Size(shape).numel()
    for start in range(0, count, 1 << 24):
        size = min(1 << 24, count - start)
        if len(shape) > 1:
            yield torch.randn(size) * 1.4 * (count // shape[0]) ** -0.5
        else:
            yield torch.rand(size) + 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=("llava", "qwen2_5_vl"), default="llava")
    parser.add_argument("--layers", type=int, help="decoder layers (default: 32 or 28)")
    parser.add_argument("--edge", type=int, default=336, help="pixels of the square image of llava (default: 336)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp16")
    parser.add_argument("--shard", type=int, default=5_000_000_000, help="largest file in bytes")
    arguments = parser.parse_args()
    if arguments.model == "llava":
        model: PreTrainedConfig = config(arguments.layers or 32, arguments.edge)
    else:
        model = qwen_config(arguments.layers or 28)
    size = write(arguments.folder, model, DTYPES[arguments.dtype], arguments.shard)
    print(f"{arguments.folder}: {size / 2**30:.2f} GiB of weights")


if __name__ == "__main__":
    main()
