# SPDX-License-Identifier: Apache-2.0
"""Checks of a checkpoint folder before any weight is read."""

from __future__ import annotations

import json
import shlex
from typing import Any

from secateur.checkpoints.checkpoint import INDEX, PICKLES, SINGLE
from secateur.checkpoints.hub import Found, base_model
from secateur.checkpoints.weights import first_line
from secateur.errors import BadModel

PROCESSOR = (
    ("tokenizer_config.json",),
    ("tokenizer.json", "tokenizer.model", "vocab.json"),
    ("preprocessor_config.json", "processor_config.json"),
)
"""A checkpoint has at least one file of each row."""


def read_config(found: Found) -> dict[str, Any]:
    """Return config.json, which must name a model_type."""
    path = found.folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadModel(f"model '{found.name}' has no config.json; give the directory that has it") from None
    except (OSError, ValueError, RecursionError) as problem:
        raise BadModel(f"{path} cannot be read ({first_line(problem)}); download it again") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise BadModel(f"{path} has no model_type; give a checkpoint that transformers' save_pretrained wrote")
    return config


def check_config(found: Found, config: dict[str, Any], known: str) -> None:
    """Refuse a checkpoint of another class than `known`, or one that is quantized already."""
    named = config.get("architectures") or [known]
    if not isinstance(named, list) or known not in named:
        first = named[0] if isinstance(named, list) else named
        raise BadModel(
            f"model '{found.name}' holds a {first}, not a {known}; take its version in transformers' own format "
            "(its name often ends in -hf)"
        )
    text = config.get("text_config")
    how = config.get("quantization_config") or (isinstance(text, dict) and text.get("quantization_config"))
    if how:
        method = how.get("quant_method", "quantized") if isinstance(how, dict) else "quantized"
        raise BadModel(
            f"model '{found.name}' is quantized already ({method}); take the checkpoint in fp16 or bf16 that it was "
            "made from, and quantize at export with --quantize"
        )


def check_files(found: Found) -> None:
    """Check that the weights are safetensors and that there are files of a tokenizer and an image processor."""
    folder, name = found.folder, found.name
    if not (folder / SINGLE).exists() and not (folder / INDEX).exists():
        repository = base_model(name)
        if repository is None and not any(next(folder.glob(pattern), None) for pattern in PICKLES):
            raise BadModel(f"model '{name}' has neither {SINGLE} nor {INDEX}; download it again")
        if repository is not None:
            folder_name, commit = repository.partition("/")[2], name.rpartition("@")[2]
            fetch = f"`hf download {repository} --revision {commit} --local-dir {folder_name}`, then "
        else:
            fetch, folder_name = "", str(folder)
        raise BadModel(
            f"model '{name}' has no {SINGLE}, and pickles (.bin, .pt) are not read, as they can run code; if you "
            f"trust it, convert it: {fetch}`{_conversion(folder_name)}`, and give --model {folder_name}"
        )
    for row in PROCESSOR:
        if not any((folder / file).is_file() for file in row):
            raise BadModel(f"model '{name}' has no {' or '.join(row)}; copy it from where the model comes from")


def _conversion(folder: str) -> str:
    """Return a command that writes safetensors next to the pickles in `folder`."""
    code = (
        "from transformers import AutoModelForImageTextToText as M; "
        f"M.from_pretrained({folder!r}, dtype='auto').save_pretrained({folder!r})"
    )
    return shlex.join(["python", "-c", code])
