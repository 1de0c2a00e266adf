# SPDX-License-Identifier: Apache-2.0
"""Checkpoint directories written by `save_pretrained` are loaded; an error in one is reported in one line."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration, MixtralConfig

from secateur import families, load_model, plugins
from secateur.checkpoints import weights as weights_module
from secateur.checkpoints.checkpoint import INDEX, SINGLE
from secateur.checkpoints.hub import Found
from secateur.checkpoints.streaming import is_streamed
from secateur.checkpoints.weights import fingerprint, load_weights
from secateur.demo import model_directory
from secateur.errors import BadModel
from secateur.families import base
from secateur.families.base import Family
from secateur.load_model import check_usable, load
from secateur.runtime.preprocess import pixel_values
from secateur.runtime.tokenizer import Tokenizer
from tests.conftest import tiny_family

Spoil = Callable[[Path], object]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_directory(), tmp_path / "model"))


@pytest.mark.parametrize("name", plugins.names(families))
def test_every_family_comes_back_from_shards(name: str, tmp_path: Path) -> None:
    made = tiny_family(name)
    made.model.save_pretrained(tmp_path, max_shard_size="50KB")
    made.processor.save_pretrained(tmp_path)
    assert (tmp_path / INDEX).is_file() and not (tmp_path / SINGLE).exists()
    again = load(str(tmp_path)).at(made.image_size, made.images)
    assert type(again) is type(made) and again.identity == made.identity
    assert (again.prompt, again.preprocess, again.layout) == (made.prompt, made.preprocess, made.layout)
    rows = [*made.layout.ids(made.image_token_id), made.prompt.pad]
    pixels = np.random.default_rng(0).normal(size=(1, *made.pixels)).astype(np.float32)
    np.testing.assert_array_equal(again.logits(rows, pixels), made.logits(rows, pixels))


def test_a_directory_is_the_demo(demo: Family, copy: Path) -> None:
    again = load(str(copy))
    assert again.identity == demo.identity
    assert again.source == str(copy) and demo.source == "demo"


def test_a_schedule_fits_every_dtype(copy: Path, demo: Family) -> None:
    """Weights stored in fp32 are rounded in fp16; the identity is that of the file."""
    again = load("demo")
    with torch.no_grad():
        for weight in again.model.parameters():
            weight.mul_(1.0001)
    again.model.save_pretrained(copy)
    full, half = load(str(copy)), load(str(copy), torch.float16)
    assert half.dtype == torch.float16 and full.dtype == torch.float32
    assert half.decoder.rotary.inv_freq.dtype == torch.float32
    assert half.identity == full.identity != demo.identity


def test_fingerprints_tell_weights_apart_but_not_storage(demo: Family) -> None:
    half = load("demo", torch.float16)
    assert half.identity == demo.identity
    with torch.no_grad():
        next(half.model.parameters()).view(-1)[0] += 1
    assert fingerprint(half.model) != demo.identity.fingerprint


def test_prompt_and_pixels_equal_the_processor(demo: Family) -> None:
    """Tokens and pixels of a chat equal those of transformers' own processor."""
    processor = AutoProcessor.from_pretrained(model_directory())
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8))
    question, further = "what color is the seven ?", "where is it ?"
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    text = processor.apply_chat_template([user], add_generation_prompt=True)
    expected = processor(text=text, images=image, return_tensors="pt", add_special_tokens=False)
    ids = expected["input_ids"][0].tolist()
    tokenizer = Tokenizer.read(demo.prompt, model_directory() / "tokenizer.json")
    ours = [*demo.layout.ids(demo.image_token_id), *tokenizer.first(question)]
    assert ours == ids
    np.testing.assert_allclose(pixel_values(image, demo.preprocess), expected["pixel_values"].numpy(), atol=1 / 255)

    answer = {"role": "assistant", "content": [{"type": "text", "text": "red"}]}
    second = {"role": "user", "content": [{"type": "text", "text": further}]}
    text = processor.apply_chat_template([user, answer, second], add_generation_prompt=True)
    long = processor(text=text, images=image, return_tensors="pt", add_special_tokens=False)["input_ids"][0].tolist()
    red = processor.tokenizer.convert_tokens_to_ids("red")
    assert [*ours, red, *tokenizer.next(further)] == long


def remove(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: str) -> Spoil:
    return lambda folder: (folder / name).write_text(content)


def mark(name: str) -> Spoil:
    return lambda folder: write(name, "\ufeff" + (folder / name).read_text())(folder)


def config(**fields: Any) -> Spoil:
    """Change fields of config.json; None removes one."""

    def spoil(folder: Path) -> None:
        found = json.loads((folder / "config.json").read_text()) | fields
        (folder / "config.json").write_text(json.dumps({k: v for k, v in found.items() if v is not None}))

    return spoil


def grow_vocabulary(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words |= {f"more{i}": len(words) + i for i in range(1000)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def drop_weight(folder: Path) -> None:
    weights = load_file(folder / SINGLE)
    del weights[next(name for name in weights if "down_proj" in name)]
    save_file(weights, folder / SINGLE, metadata={"format": "pt"})


def store(dtype: torch.dtype) -> Spoil:
    """Store all weights in another dtype, rounded to it."""

    def spoil(folder: Path) -> None:
        weights = {name: weight.to(dtype) for name, weight in load_file(folder / SINGLE).items()}
        save_file(weights, folder / SINGLE, metadata={"format": "pt"})

    return spoil


def decoder(**fields: Any) -> Spoil:
    """Change fields of the decoder in config.json."""

    def spoil(folder: Path) -> None:
        text = json.loads((folder / "config.json").read_text())["text_config"]
        config(text_config=text | fields)(folder)

    return spoil


def end_at(token: object) -> Spoil:
    return write("generation_config.json", json.dumps({"eos_token_id": token}))


def processor(**fields: Any) -> Spoil:
    """Change fields of the image processor in processor_config.json."""

    def spoil(folder: Path) -> None:
        images = json.loads((folder / "processor_config.json").read_text())["image_processor"]
        beside(image_processor=images | fields)(folder)

    return spoil


def beside(**fields: Any) -> Spoil:
    """Change fields of processor_config.json."""

    def spoil(folder: Path) -> None:
        found = json.loads((folder / "processor_config.json").read_text()) | fields
        (folder / "processor_config.json").write_text(json.dumps(found))

    return spoil


def append(name: str, content: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + content)


def lose_shard(folder: Path) -> None:
    weights = load_file(folder / SINGLE)
    (folder / SINGLE).rename(folder / "model-00001-of-00002.safetensors")
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(weights)}
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


BAD: dict[str, tuple[Spoil, str]] = {
    "no config": (remove("config.json"), "has no config.json; give the directory that has it"),
    "config is no JSON": (write("config.json", "{"), r"config.json cannot be read \(.*\); download it again"),
    "config is a list": (write("config.json", "[]"), "has no model_type; give a checkpoint that transformers'"),
    "no model_type": (config(model_type=None), "has no model_type; give a checkpoint that transformers'"),
    "unknown": (
        config(model_type="glimpse"),
        "is a 'glimpse'; supported: .*llava.* To add it, create secateur/families/MODEL_TYPE.py with a class "
        r"Family\(base.Family\) that has: architecture, bucket, dimensions, grids, tiny, vision\.",
    ),
    "two lines": (config(model_type="a\nb"), "is a 'a b'; supported"),
    "known to transformers only": (config(model_type="blip-2"), "is a 'blip-2'; supported: .*To add it, create"),
    "text only": (config(model_type="qwen2"), "is a 'qwen2', which reads text only.*vision-language model; supported"),
    "remote code": (
        config(model_type="glimpse", auto_map={"AutoModel": "modeling.Glimpse"}),
        r"needs its own Python code \(auto_map in config.json\), which is not run; take its version in",
    ),
    "another class": (
        config(architectures=["LlavaLlamaForCausalLM"]),
        "holds a LlavaLlamaForCausalLM, not a LlavaForConditionalGeneration; take its version in transformers' own",
    ),
    "gptq": (config(quantization_config={"quant_method": "gptq", "bits": 4}), r"quantized already \(gptq\); take"),
    "awq": (config(quantization_config={"quant_method": "awq"}), r"quantized already \(awq\).*at export with --quant"),
    "bitsandbytes": (config(quantization_config={"load_in_4bit": True}), r"quantized already \(quantized\); take"),
    "a quantized decoder": (
        config(text_config={"quantization_config": {"quant_method": "fp8"}}),
        r"quantized already \(fp8\); take",
    ),
    "no weights": (remove(SINGLE), f"has neither {SINGLE} nor {INDEX}; download it again"),
    "no safetensors": (write(SINGLE, "\0" * 100), "is not a safetensors file, or it is truncated; download it again"),
    "a missing shard": (lose_shard, "lacks 1 of its files, the first is model-00002-of-00002.safetensors; download"),
    "a missing weight": (drop_weight, "lacks 1 weights, the first is .*down_proj"),
    "integers": (store(torch.int8), "stores .* as I8: it is quantized; take the checkpoint in"),
    "fp8": (store(torch.float8_e4m3fn), "stores .* as F8_E4M3: it is quantized; take the checkpoint in"),
    "more than the header says": (append(SINGLE, b"more"), "is damaged: its tensors end at byte .*; download it again"),
    "more layers than the config": (decoder(num_hidden_layers=3), "for which its config.json has no layer"),
    "another shape": (decoder(intermediate_size=8), r"has .*mlp.* its config.json says .*; download it again"),
    "no decoder in the config": (config(text_config=None), "lacks .* weights, the first is .*; download it again"),
    "words for numbers": (decoder(hidden_size="128"), "cannot be loaded .*'hidden_size' expected int, got str"),
    "an unknown activation": (decoder(hidden_act="gulu"), r"cannot be loaded \(KeyError 'gulu'\); compare its .json"),
    "an unknown dtype": (config(dtype="float12"), "cannot be loaded .*'float12'"),
    "an unread end of an answer": (write("generation_config.json", "{"), "cannot be loaded .*; compare its .json"),
    "an unknown end of an answer": (
        end_at(10**6),
        "would end at token 1000000, which the tokenizer does not have; cor",
    ),
    "words for an end": (end_at("</s>"), "would end at token '<', which the tokenizer does not have; correct eos_"),
    "no list of classes": (config(architectures=5), "holds a 5, not a LlavaForConditionalGeneration; take"),
    "a small context": (decoder(max_position_embeddings=8), r"has \d+ rows before the question, and the model takes 8"),
    "no number for a mean": (processor(image_mean=[math.nan] * 3), r"mean \(nan, nan, nan\) must be three numbers"),
    "words for a mean": (processor(image_mean="grey"), "processor of .* cannot be used .could not convert string"),
    "all images black": (processor(rescale_factor=0), "rescale 0 must be a number above 0"),
    "another image processor": (processor(image_processor_type="ViTImageProcessor"), "ViTImageProcessor is not supp"),
    "patches of nothing": (
        beside(patch_size=0),
        "patch_size is 0 in processor_config.json, and the vision encoder's is 8",
    ),
    "no patch size": (beside(patch_size=None), "patch_size is None in processor_config.json, .* is 8; set it to that"),
    "no class token": (
        beside(num_additional_image_tokens=0),
        "num_additional_image_tokens is 0 in processor_config.json, and .*'default' leaves out 1 .*; set num_.* to 1",
    ),
    "the class token as an image token": (
        config(vision_feature_select_strategy="full"),
        "vision_feature_select_strategy 'full' in config.json is not supported for CLIP, whose .* do not change it",
    ),
    "a byte order mark": (
        mark("config.json"),
        "config.json begins with a byte order mark, which transformers does not",
    ),
    "one in a tokenizer": (mark("tokenizer.json"), "tokenizer.json begins with a byte order mark"),
    "no tokenizer": (remove("tokenizer.json"), "has no tokenizer.json or tokenizer.model or vocab.json; copy it from"),
    "no tokenizer settings": (remove("tokenizer_config.json"), "has no tokenizer_config.json; copy it from"),
    "no processor": (remove("processor_config.json"), "has no preprocessor_config.json or processor_config.json; copy"),
    "an empty processor": (write("processor_config.json", "{}"), "cannot be loaded"),
    "no chat template": (remove("chat_template.jinja"), "no chat template"),
    "a tokenizer of another model": (grow_vocabulary, r"tokenizer.* \d+"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD)
def test_broken_checkpoints(copy: Path, spoil: Spoil, message: str) -> None:
    spoil(copy)
    with pytest.raises(BadModel, match=message) as problem:
        check_usable(load(str(copy)))
    assert "\n" not in str(problem.value)


HOW: dict[str, dict[str, Any]] = {
    "flash attention": {"_attn_implementation": "flash_attention_2"},
    "flash attention in parts": {"attn_implementation": {"text_config": "flash_attention_2"}},
    "flash attention, in other words": {"use_flash_attn": True, "attention_implementation": "flash_attention_2"},
    "a wider dtype": {"dtype": "float32"},
    "outputs": {"return_dict": False, "output_hidden_states": True, "output_attentions": True},
    "memory": {"use_cache": False, "chunk_size_feed_forward": 4, "torchscript": True},
}


@pytest.mark.parametrize("fields", HOW.values(), ids=HOW)
def test_settings_of_how_a_model_runs_change_nothing(copy: Path, demo: Family, fields: dict[str, Any]) -> None:
    """None of them needs a library, such as flash-attn, or makes another model of it."""
    config(**fields)(copy)
    for part in ("text_config", "vision_config"):
        found = json.loads((copy / "config.json").read_text())[part]
        config(**{part: found | fields})(copy)
    other = load(str(copy))
    assert other.identity == demo.identity
    ids, pixels = [*demo.conversation.head_ids, 5, 6], np.ones((1, *demo.pixels), np.float32)
    assert np.allclose(other.logits(ids, pixels), demo.logits(ids, pixels), rtol=0, atol=0)


def test_an_index_needs_only_its_weight_map(copy: Path, demo: Family) -> None:
    weights = load_file(copy / SINGLE)
    (copy / SINGLE).rename(copy / "model-00001-of-00001.safetensors")
    (copy / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}))
    assert load(str(copy)).identity == demo.identity


def test_pickles_are_refused_and_the_suggested_command_works(copy: Path, demo: Family) -> None:
    torch.save(load_file(copy / SINGLE), copy / "pytorch_model.bin")
    (copy / SINGLE).unlink()
    with pytest.raises(BadModel, match=r"pickles \(.bin, .pt\) are not read, as they can run code") as problem:
        load(str(copy))
    (command,) = re.findall("`(.*)`", str(problem.value))
    python, flag, code = shlex.split(command)
    assert (python, flag) == ("python", "-c")
    exec(code)
    assert load(str(copy)).identity == demo.identity


def test_the_suggested_command_downloads_the_requested_commit(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / SINGLE).rename(copy / "pytorch_model.bin")
    commit = "0123456789" * 4
    monkeypatch.setattr(load_model, "resolve", lambda source, revision: Found(copy, f"{source}@{commit}"))
    with pytest.raises(BadModel, match=f"`hf download org/name --revision {commit} --local-dir name`, then `python"):
        load("org/name", revision="v1")


def mixture(folder: Path) -> Path:
    """A LLaVA whose decoder has experts, which transformers joins when it loads them."""
    config = MixtralConfig(
        hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=2, vocab_size=64, max_position_embeddings=256,
    )  # fmt: skip
    made = tiny_family("llava")
    made.model.config.text_config = config
    LlavaForConditionalGeneration(made.model.config).save_pretrained(folder)
    made.processor.save_pretrained(folder)
    return folder


def test_a_checkpoint_that_must_be_converted_has_to_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large checkpoint that cannot be streamed is loaded if memory is free, else refused; the suggested fix works."""
    folder, found = mixture(tmp_path / "experts"), list[int | None]()
    monkeypatch.setattr(base, "check_structure", lambda text: None)  # today only experts are converted
    monkeypatch.setattr(weights_module, "STREAMED", 0)
    monkeypatch.setattr(weights_module, "free_memory", lambda: found[-1])
    for free in (1 << 30, None):
        found.append(free)
        assert not is_streamed(load(str(folder)).model)
    found.append(1000)
    with pytest.raises(BadModel, match=r"converts as a whole, which takes 0.0 GiB of memory, and 0.0 GiB are") as said:
        load(str(folder))
    (arguments,) = re.findall(r"save_pretrained\(FOLDER, (.*)\)", str(said.value))
    assert arguments == "save_original_format=False" and "\n" not in str(said.value)
    whole = load_weights(LlavaForConditionalGeneration, str(folder))
    whole.save_pretrained(folder, save_original_format=False)
    again = load(str(folder))
    assert is_streamed(again.model) and again.fingerprint == fingerprint(whole)


def test_of_several_chat_templates_the_default_is_taken(copy: Path, demo: Family) -> None:
    default = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    named = [{"name": "default", "template": default}, {"name": "tool_use", "template": "tools"}]
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": named}))
    assert load(str(copy)).prompt == demo.prompt
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": named[1:]}))
    with pytest.raises(BadModel, match="the chat templates are called tool_use; name one of them 'default'"):
        check_usable(load(str(copy)))


@pytest.mark.parametrize("ratio", ["anyres", "pad"])
def test_an_aspect_ratio_without_a_number_of_tiles(ratio: str) -> None:
    family = tiny_family("llava_onevision")
    family.model.config.vision_aspect_ratio = ratio
    with pytest.raises(
        BadModel, match=f"vision_aspect_ratio '{ratio}' in config.json is not supported; .*anyres_max_N"
    ):
        check_usable(family)


@pytest.mark.parametrize("layer", [99, -99])
def test_a_layer_that_the_encoder_does_not_have(copy: Path, layer: int) -> None:
    config(vision_feature_layer=layer)(copy)
    for grid in (None, (2, 2)):
        with pytest.raises(BadModel, match=f"vision_feature_layer {layer} is outside the encoder of . layers; correct"):
            load(str(copy)).vision(grid=grid)


def test_too_many_images_are_refused_before_they_are_prepared(demo: Family) -> None:
    with pytest.raises(BadModel, match=r"the prompt has 144000000 rows before the question, and the model takes \d+"):
        check_usable(demo.at(images=1_000_000))
