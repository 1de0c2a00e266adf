# SPDX-License-Identifier: Apache-2.0
"""Everything in the folder of a checkpoint is used, reported in a warning, or refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from secateur import families, plugins
from secateur.checkpoints.checkpoint import INDEX, SINGLE
from secateur.checkpoints.inventory import files, inventory
from secateur.demo import model_directory
from secateur.errors import BadModel, SecateurWarning
from secateur.load_model import load
from tests.commands.calling import call
from tests.conftest import tiny_family

BASE = "llava-hf/llava-1.5-7b-hf"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_directory(), tmp_path / "model"))


def adapter(folder: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": BASE, "r": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file({"base_model.model.q_proj.lora_A.weight": torch.ones(8, 4)}, folder / "adapter_model.safetensors")


def rename(change: Callable[[str], str]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        weights = {change(name): weight for name, weight in load_file(folder / SINGLE).items()}
        save_file(weights, folder / SINGLE, metadata={"format": "pt"})

    return spoil


def add(name: str, *shape: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        save_file(load_file(folder / SINGLE) | {name: torch.ones(shape)}, folder / SINGLE, metadata={"format": "pt"})

    return spoil


def loose_shards(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "model-00001-of-00001.safetensors")


def mistral(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "consolidated.safetensors")


def mlx(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization": {"group_size": 64, "bits": 4}}))


BIAS = "language_model.model.layers.0.self_attn.q_proj.bias"
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "an adapter": (adapter, rf"has an adapter \(adapter_config.json, LORA\) for {BASE}, .*merge_and_unload\(\)"),
    "weights of an adapter": (
        lambda folder: (folder / "adapter_model.bin").write_bytes(b"x"),  # type: ignore[dict-item]
        r"has an adapter \(adapter_model.bin, PEFT\) for its base model, .*merge_and_unload\(\)",
    ),
    "names of peft": (rename("base_model.model.{}".format), r"the tensor base_model\..* was not merged; merge it with"),
    "an unmerged layer": (
        rename(lambda name: name.replace("q_proj.weight", "q_proj.base_layer.weight")),
        r"the tensor .*base_layer.weight of an adapter that was not merged",
    ),
    "a low-rank pair": (add("model.layers.0.q_proj.lora_A.default.weight", 8, 4), "lora_A.* was not merged"),
    "names of DDP": (rename("module.{}".format), r"of a model within a wrapper \('module'\); write the model inside"),
    "a bias that the config turns off": (add(BIAS, 128), "q_proj.bias, and its config.json makes a Linear without it"),
    "a bias of a norm": (add("multi_modal_projector.linear_1.scale", 4), "linear_1.scale, and its config.json makes a"),
    "shards without an index": (loose_shards, rf"only model-00001-of-00001.safetensors; add {INDEX}, which says what"),
    "Mistral's format": (mistral, "only consolidated.safetensors; that is Mistral's format: take the version in trans"),
    "MLX": (mlx, r"is quantized already \(MLX\); take the checkpoint in fp16 or bf16"),
}


@pytest.mark.parametrize(("spoil", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_be_left_out_is_refused(copy: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(copy)
    with pytest.raises(BadModel, match=message) as problem:
        load(str(copy))
    assert "\n" not in str(problem.value) and "download it again" not in str(problem.value)


def test_an_adapter_alone_names_its_base(tmp_path: Path) -> None:
    adapter(tmp_path)
    with pytest.raises(BadModel, match=rf"has an adapter .* for {BASE}"):
        load(str(tmp_path))


def test_a_bias_is_refused_also_where_transformers_converts_the_weights(tmp_path: Path) -> None:
    """The two ways to load a checkpoint refuse the same tensors."""
    from secateur.checkpoints.weights import load_weights

    made = tiny_family("llava")
    made.model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / SINGLE)
    name = next(name for name in weights if "layers.0.self_attn.q_proj" in name and "vision" not in name)
    save_file(weights | {name.replace("weight", "bias"): torch.ones(48)}, tmp_path / SINGLE, metadata={"format": "pt"})
    with pytest.raises(BadModel, match=r"q_proj.bias, and its config.json makes a Linear without it"):
        load_weights(LlavaForConditionalGeneration, str(tmp_path))


def test_what_nothing_reads_is_one_warning(copy: Path) -> None:
    add("score_head.weight", 4, 4)(copy)
    config = json.loads((copy / "config.json").read_text())
    config |= {"pruning_ratio": 0.5, "text_config": config["text_config"] | {"residual_dropout": 0.1}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "second.safetensors").write_bytes(b"x")
    with pytest.warns(SecateurWarning) as told:
        load(str(copy))
    said = [str(each.message) for each in told if issubclass(each.category, SecateurWarning)]
    listed = "file second.safetensors; settings text_config.residual_dropout, pruning_ratio; tensor score_head.weight"
    assert len(said) == 1 and listed in said[0] and f"(all: secateur inspect --model {copy})" in said[0]


def test_buffers_that_the_model_makes_itself_are_no_news(copy: Path, recwarn: pytest.WarningsRecorder) -> None:
    add("language_model.model.layers.0.self_attn.rotary_emb.inv_freq", 16)(copy)
    add("vision_tower.vision_model.embeddings.position_ids", 1, 145)(copy)
    load(str(copy))
    assert not [each for each in recwarn if issubclass(each.category, SecateurWarning)]


@pytest.mark.parametrize("name", plugins.names(families))
def test_nothing_of_a_saved_model_is_unread(name: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    made = tiny_family(name)
    made.model.save_pretrained(tmp_path)
    made.processor.save_pretrained(tmp_path)
    load(str(tmp_path))
    assert not [each for each in recwarn if issubclass(each.category, SecateurWarning)]


def test_published_configurations_give_no_warning(tmp_path: Path) -> None:
    """Settings of the checkpoints that most people have, as their authors wrote them."""
    old = {
        "ignore_index": -100, "image_token_index": 32000, "model_type": "llava", "pad_token_id": 32001,
        "projector_hidden_act": "gelu", "vocab_size": 32064, "torch_dtype": "float16",
        "text_config": {"_name_or_path": "x", "model_type": "llama", "rms_norm_eps": 1e-05, "torch_dtype": "float16"},
        "vision_config": {"model_type": "clip_vision_model", "vocab_size": 32000},
    }  # fmt: skip
    qwen = {
        "model_type": "qwen2_5_vl", "hidden_size": 64, "num_attention_heads": 4, "max_window_layers": 28,
        "rope_theta": 1000000.0, "vision_token_id": 151654, "use_sliding_window": False, "sliding_window": 32768,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {"in_chans": 3, "spatial_patch_size": 14, "tokens_per_second": 2, "depth": 32},
    }  # fmt: skip
    for config in (old, qwen):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert not [item.name for item in inventory(tmp_path, config) if item.told]


def test_files_by_use(copy: Path) -> None:
    for name in ("README.md", "pytorch_model.bin", "training_args.bin"):
        (copy / name).write_text("x")
    (copy / "vocab_2.bin.json").write_bytes(b"x")
    found = {item.name: item for item in files(copy)}
    assert {name for name, item in found.items() if item.use == "used"} >= {"config.json", SINGLE, "tokenizer.json"}
    for name in ("README.md", "pytorch_model.bin", "training_args.bin"):
        assert found[name].use == "not read" and not found[name].told
    assert found["vocab_2.bin.json"].use == "not read" and found["vocab_2.bin.json"].told


def test_inspect_shows_it(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add("score_head.weight", 4, 4)(copy)
    code, out, _ = call(capsys, "inspect", copy, "--json")
    found: dict[str, Any] = json.loads(out)
    assert code == 0 and found["family"] == "llava" and found["vision_tokens"] == 144
    assert any("tensor score_head.weight" in warning for warning in found["warnings"])
    assert {"name": SINGLE, "kind": "file", "use": "used", "note": "", "told": False} in found["items"]
    assert {"name": "score_head.weight", "kind": "tensor", "use": "not read", "note": "", "told": True} in found[
        "items"
    ]
    code, out, _ = call(capsys, "inspect", "--model", copy)
    assert code == 0 and "it can be calibrated and exported" in out
    adapter(copy)
    code, out, err = call(capsys, "inspect", copy)
    assert code == 1 and "has an adapter" in err and "adapter_config.json" in out


def test_inspect_is_bounded_and_shows_answers(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 2, "repetition_penalty": 1.3, "num_beams": 4})
    )
    code, out, _ = call(capsys, "inspect", copy, "--json")
    found: dict[str, Any] = json.loads(out)
    assert code == 0 and any("num_beams 4" in warning for warning in found["warnings"])
    assert "repetition_penalty 1.3" in [item["name"] for item in found["items"] if item["kind"] == "answers"]
    config = json.loads((copy / "config.json").read_text())
    for field, message in (
        ({"model_type": "foo"}, "is a 'foo'; supported"),
        ({"text_config": config["text_config"] | {"num_hidden_layers": 20_000_000}}, "the most is 1024"),
    ):
        (copy / "config.json").write_text(json.dumps(config | field))
        code, out, err = call(capsys, "inspect", copy, "--json")
        assert code == 1 and message in err and err.count("\n") == 1
        assert SINGLE in [item["name"] for item in json.loads(out)["items"]]
    (copy / "model.safetensors.index.json").unlink(missing_ok=True)
    os.mkfifo(copy / "model.safetensors.index.json")
    code, _, err = call(capsys, "inspect", copy)
    assert code == 1 and "is not a regular file" in err
