# SPDX-License-Identifier: Apache-2.0
"""A model whose weights stay in their files equals the model that transformers loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from secateur import families, plugins
from secateur.checkpoints import streaming
from secateur.checkpoints.checkpoint import INDEX, SINGLE
from secateur.checkpoints.streaming import held, is_streamed, stream, value
from secateur.checkpoints.weights import load_weights
from secateur.errors import BadModel
from secateur.families.base import Family

SHARD = "60KB"


@pytest.fixture(scope="module", params=plugins.names(families))
def tiny(request: pytest.FixtureRequest) -> Family:
    found: Family = plugins.load(families, request.param, "model family").Family.tiny()
    return found


@pytest.fixture(scope="module")
def llava() -> Family:
    found: Family = plugins.load(families, "llava", "model family").Family.tiny()
    return found


def save(family: Family, folder: Path, shard: str = SHARD) -> Path:
    family.model.save_pretrained(folder, max_shard_size=shard)
    return folder


def streamed(family: Family, folder: Path) -> PreTrainedModel:
    model = stream(type(family).architecture, folder)
    assert model is not None
    return model


def test_every_weight_and_buffer_is_that_of_transformers(tiny: Family, tmp_path: Path) -> None:
    save(tiny, tmp_path)
    want = load_weights(type(tiny).architecture, str(tmp_path))
    model = streamed(tiny, tmp_path)
    assert all(weight.is_meta for weight in model.parameters())
    expected = want.state_dict()
    found = {name: value(weight) for name, weight in model.state_dict(keep_vars=True).items()}
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        assert weight.dtype == expected[name].dtype and torch.equal(weight, expected[name]), name
    buffers = dict(model.named_buffers())
    for name, buffer in want.named_buffers():
        assert buffers.pop(name).equal(buffer), name
    assert not buffers
    assert model.generation_config.to_dict() == want.generation_config.to_dict()


def test_it_runs_and_keeps_nothing(llava: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "HELD_BYTES", 10_000)  # some modules are held as a whole, others in pieces
    model = streamed(llava, save(llava, tmp_path))
    ids = torch.tensor([[1, 5, *[3] * 36, 8, 9]])
    given = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 24, 24)}
    with torch.no_grad():
        assert torch.equal(model(**given).logits, llava.model(**given).logits)
        with pytest.raises(RuntimeError):
            model(**given | {"pixel_values": torch.randn(1, 4, 24, 24)})
    assert all(weight.is_meta for weight in model.parameters())


def test_held_weights_are_read_once(llava: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = streamed(llava, save(llava, tmp_path))
    layer: Any = model.get_decoder().layers[1]
    want: Any = llava.decoder.layers[1]
    with held(layer):
        monkeypatch.setattr(streaming, "value", lambda weight: pytest.fail("read again"))
        assert torch.equal(layer.mlp(torch.ones(1, 48)), want.mlp(torch.ones(1, 48)))
        assert torch.equal(layer.self_attn.q_proj.weight, want.self_attn.q_proj.weight)
    assert layer.self_attn.q_proj.weight.is_meta and is_streamed(layer)
    with held(want):
        assert not is_streamed(want)


def test_a_cast_applies_to_weights_in_files(llava: Family, tmp_path: Path) -> None:
    llava.model.save_pretrained(tmp_path)
    model = streamed(llava, tmp_path)
    for weight in model.parameters():
        weight.data = weight.data.to(torch.float16)
    for mine, theirs in zip(model.parameters(), llava.model.parameters(), strict=True):
        assert torch.equal(value(mine), theirs.half())


def test_tied_weights_are_one(llava: Family, tmp_path: Path) -> None:
    save(llava, tmp_path, "1GB")
    config = json.loads((tmp_path / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / SINGLE)
    head = next(name for name in weights if "lm_head" in name)
    apart = streamed(llava, tmp_path)  # both are stored, and differ
    assert apart.get_input_embeddings().weight is not apart.get_output_embeddings().weight
    save_file({name: weight for name, weight in weights.items() if name != head}, tmp_path / SINGLE, {"format": "pt"})
    tied = streamed(llava, tmp_path)
    assert tied.get_input_embeddings().weight is tied.get_output_embeddings().weight
    assert torch.equal(value(tied.get_output_embeddings().weight), llava.model.get_input_embeddings().weight)


def drop_shard(folder: Path) -> None:
    (folder / shard(folder)).unlink()


def truncate(folder: Path) -> None:
    file = folder / shard(folder)
    file.write_bytes(file.read_bytes()[:-4])


def cut_header(folder: Path) -> None:
    file = folder / shard(folder)
    file.write_bytes(file.read_bytes()[:100])


def drop_tensor(folder: Path) -> None:
    file = folder / shard(folder)
    weights = load_file(file)
    weights.popitem()
    save_file(weights, file, {"format": "pt"})


def leave_folder(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = f"../{shard(folder)}"
    (folder / INDEX).write_text(json.dumps(index))


def forget(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"].popitem()
    (folder / INDEX).write_text(json.dumps(index))


def reconfigure(**fields: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["text_config"] |= fields
        (folder / "config.json").write_text(json.dumps(config))

    return spoil


def quantize(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))


def store(dtype: torch.dtype) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / shard(folder)
        weights = {name: weight.to(dtype) for name, weight in load_file(file).items()}
        save_file(weights, file, {"format": "pt"})

    return spoil


def pickle(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def empty(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()


def shard(folder: Path) -> str:
    return sorted(file.name for file in folder.glob("*.safetensors"))[1]


BAD = {
    "missing shard": (drop_shard, "lacks 1 of its files, the first is model-00002-of"),
    "truncated": (truncate, "is truncated: it has .* bytes of .*; download it again"),
    "truncated header": (cut_header, "is not a safetensors file, or it is truncated"),
    "missing tensor": (drop_tensor, "lacks '.*', which model.safetensors.index.json says is there"),
    "path outside": (leave_folder, "names '../model-.*'; a name has letters, .* so that it stays in the folder"),
    "missing weight": (forget, "lacks 1 weights, the first is .*; download it again"),
    "shape": (reconfigure(vocab_size=65), r"has .* of \[64, 48\], its config.json says \[65, 48\]"),
    "more layers": (reconfigure(num_hidden_layers=3), "has .*layers.3.*, for which its config.json has no layer"),
    "fewer layers": (reconfigure(num_hidden_layers=5), "lacks 9 weights"),
    "quantized": (quantize, "is quantized; take the checkpoint in"),
    "int8": (store(torch.int8), "stores .* as I8: it is quantized"),
    "fp8": (store(torch.float8_e4m3fn), "stores .* as F8_E4M3: it is quantized"),
    "pickles": (pickle, "has no safetensors, only pickles"),
    "nothing": (empty, "has neither model.safetensors nor model.safetensors.index.json"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD.keys())
def test_bad_checkpoints(llava: Family, tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    save(llava, tmp_path)
    spoil(tmp_path)
    with pytest.raises(BadModel, match=message) as refused:
        stream(type(llava).architecture, tmp_path)
    assert "\n" not in str(refused.value)


def test_a_bad_index_file(llava: Family, tmp_path: Path) -> None:
    save(llava, tmp_path)
    for text in ("{", "[]", "{}", '{"weight_map": [1]}'):
        (tmp_path / INDEX).write_text(text)
        with pytest.raises(BadModel, match="cannot be read .*; download" if text == "{" else "has no 'weight_map'"):
            stream(type(llava).architecture, tmp_path)


def test_making_a_model_changes_no_class(llava: Family, tmp_path: Path) -> None:
    before = nn.Module.register_parameter
    streamed(llava, save(llava, tmp_path))
    assert nn.Module.register_parameter is before and not nn.Linear(2, 2).weight.is_meta
