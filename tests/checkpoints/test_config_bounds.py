# SPDX-License-Identifier: Apache-2.0
"""Files of a checkpoint that are no regular files, and sizes that no model has, are refused before a model is made."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from secateur.checkpoints.config_bounds import check_config, check_files
from secateur.errors import BadModel
from secateur.load_model import load


def write(folder: Path, **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"} | config))
    return folder / "config.json"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"text_config": {"num_hidden_layers": 10**6}}, "text_config.num_hidden_layers = 1000000, the most is 1024"),
        ({"vision_config": {"depth": 2000}}, "vision_config.depth = 2000, the most is 1024"),
        ({"vision_config": {"image_size": [10**6, 1]}}, "vision_config.image_size = 1000000, the most is 8192"),
        ({"text_config": {"hidden_size": 10**12}}, "text_config.hidden_size = 1000000000000, the most is"),
        ({"text_config": {"num_attention_heads": 10**9}}, "num_attention_heads = 1000000000, the most is 4096"),
        ({"text_config": {"num_hidden_layers": 0}}, "text_config.num_hidden_layers = 0, the least is 1"),
        ({"vision_config": {"patch_size": -4}}, "vision_config.patch_size = -4, the least is 1"),
        ({"a": [{"b": {"vocab_size": 10**18}}]}, "a.b.vocab_size = 1000000000000000000"),
    ],
)
def test_sizes_without_a_model_are_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    path = write(tmp_path, **config)
    for refuse in (lambda: check_config(path), lambda: load(str(tmp_path))):
        with pytest.raises(BadModel, match=message):
            refuse()


def test_usual_sizes_are_accepted(tmp_path: Path) -> None:
    text = {"num_hidden_layers": 128, "vocab_size": 262144, "max_position_embeddings": 10**7, "rope_theta": 10**9}
    vision = {"image_size": 1024, "patch_size": 14, "spatial_merge_size": 2, "layers": [8, 16]}
    check_config(write(tmp_path, text_config=text, vision_config=vision, vision_feature_layer=-2))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()):
        path = tmp_path / name
        make(path)
        for refuse in (lambda: check_files(tmp_path), lambda: load(str(tmp_path))):
            with pytest.raises(BadModel, match=f"{name} cannot be read: it is not a regular file"):
                refuse()
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def test_large_files_and_bombs_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    with path.open("ab") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(BadModel, match="it has 16777217 bytes, and the most is 16777216"):
        check_files(tmp_path)
    write(tmp_path)
    pattern = {"type": "Split", "pattern": {"Regex": "(a+)+"}, "behavior": "Isolated", "invert": False}
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model, "pre_tokenizer": pattern}))
    with pytest.raises(BadModel, match=r"tokenizer\.json .*repeats a group that has repetitions"):
        load(str(tmp_path))
