# SPDX-License-Identifier: Apache-2.0
"""Load the model of a checkpoint as a family, and check its files, images and prompts."""

from __future__ import annotations

import json
import shlex
from typing import Any

import torch
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from secateur import families, plugins
from secateur.bundle.reader import Bundle
from secateur.bundle.regular_file import read_text
from secateur.checkpoints import config_bounds
from secateur.checkpoints.checkpoint import PICKLES, SINGLE, Checkpoint
from secateur.checkpoints.hub import DEMO, Found, base_model, resolve, resolve_again
from secateur.checkpoints.inventory import Item, check_adapter, files, inventory, warn_unread
from secateur.decoder.check import check_decoder
from secateur.errors import BadBundle, BadModel, SecateurError, first_line
from secateur.families.base import Family

CONFIG = "config.json"
PROCESSOR = (
    ("tokenizer_config.json",),
    ("tokenizer.json", "tokenizer.model", "vocab.json"),
    ("preprocessor_config.json", "processor_config.json"),
)
"""A checkpoint has at least one file of each row."""


def load(source: str = DEMO, dtype: torch.dtype = torch.float32, revision: str | None = None) -> Family:
    """Load the demo model, a local checkpoint directory or a hub id; safetensors only, no remote code.

    `revision` is a branch, tag or commit of a hub id, which may also be given as org/name@revision.

    Raises:
        BadModel: the checkpoint is missing, incomplete, quantized, has only pickles, needs its own code, or is of a
            family that is not supported.
    """
    found = resolve(source, revision)
    config_bounds.check_files(found.folder)
    check_adapter(found.folder, found.name)
    config = _read_config(found)
    config_bounds.check_config(found.folder / CONFIG)
    family = _family(found, config)
    _check_config(found, config, family.architecture.__name__)
    _check_files(found)
    try:
        Checkpoint.open(found.folder)
        listed = inventory(found.folder, config)
        loaded = family.from_pretrained(str(found.folder), found.name)
    except (SecateurError, ImportError, MemoryError):
        raise
    except Exception as problem:  # transformers raises many types of errors for unexpected settings
        raise BadModel(
            f"model '{found.name}' cannot be loaded ({first_line(problem)}); compare its .json files with "
            "those of its source"
        ) from problem
    warn_unread([*listed, *loaded.unread], found.name)
    loaded.to(dtype)
    check_decoder(loaded.model.get_decoder(), loaded.decoder, loaded.entry_scale)
    return loaded


def contents(source: str, revision: str | None = None) -> list[Item]:
    """List the files of a checkpoint and, if its config.json can be read, the settings there; nothing is loaded.

    Raises:
        BadModel: there is no such model.
    """
    found = resolve(source, revision)
    try:
        config_bounds.check_files(found.folder)
        config_bounds.check_config(found.folder / CONFIG)
        return inventory(found.folder, _read_config(found))
    except Exception:  # `load` says what is wrong
        return files(found.folder)


def load_again(bundle: Bundle, dtype: torch.dtype = torch.float32) -> Family:
    """Load the model that a bundle was exported from: from the folder `bundle.checkpoint`, or where the manifest says.

    Raises:
        BadModel: see `load` and `resolve_again`.
        BadBundle: it is another model.
    """
    source = bundle.checkpoint or resolve_again(bundle.manifest.source).name
    family = load(source, dtype)
    if family.fingerprint != bundle.manifest.model.fingerprint:
        raise BadBundle(
            f"model '{source}' is not the one this bundle was exported from: its weights or its configuration differ; "
            "give the right checkpoint with --model, or export again"
        )
    return family


def _read_config(found: Found) -> dict[str, Any]:
    """Return config.json, which must name a model_type."""
    path = found.folder / CONFIG
    try:
        config = json.loads(read_text(path))
    except FileNotFoundError:
        raise BadModel(f"model '{found.name}' has no config.json; give the directory that has it") from None
    except (OSError, ValueError, RecursionError) as problem:
        raise BadModel(f"{path} cannot be read ({first_line(problem)}); download it again") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise BadModel(f"{path} has no model_type; give a checkpoint that transformers' save_pretrained wrote")
    return config


def _check_config(found: Found, config: dict[str, Any], known: str) -> None:
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
    if how or config.get("quantization"):
        method = "MLX" if not how else how.get("quant_method", "quantized") if isinstance(how, dict) else "quantized"
        raise BadModel(
            f"model '{found.name}' is quantized already ({method}); take the checkpoint in fp16 or bf16 that it was "
            "made from, and quantize at export with --quantize"
        )


def _check_files(found: Found) -> None:
    """Check that the weights are safetensors and that there are files of a tokenizer and an image processor."""
    folder, name = found.folder, found.name
    repository = base_model(name)
    pickles = repository is not None or any(next(folder.glob(pattern), None) for pattern in PICKLES)
    if pickles and not any(folder.glob("*.safetensors")):
        if repository is not None:
            folder_name, commit = repository.partition("/")[2], name.rpartition("@")[2]
            fetch = f"`hf download {repository} --revision {commit} --local-dir {folder_name}`, then "
        else:
            fetch, folder_name = "", str(folder)
        raise BadModel(
            f"model '{name}' has no {SINGLE}, and pickles (.bin, .pt) are not read, as they can run code; if it has "
            f"them and you trust it, convert it: {fetch}`{_conversion(folder_name)}`, and give --model {folder_name}"
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


def _family(found: Found, config: dict[str, Any]) -> type[Family]:
    """Return the family of the checkpoint's model_type."""
    kind, supported = config["model_type"], plugins.names(families)
    if "auto_map" in config:
        raise BadModel(
            f"model '{found.name}' needs its own Python code (auto_map in config.json), which is not run; "
            f"take its version in transformers' own format; supported: {', '.join(supported)}"
        )
    if kind in supported:
        family: type[Family] = plugins.load(families, kind, "model family").Family
        return family
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise BadModel(
            f"model '{found.name}' is a '{kind}', which reads text only, so it has no vision tokens; "
            f"give a vision-language model; supported: {', '.join(supported)}"
        )
    needed = ", ".join(sorted(["architecture", *Family.__abstractmethods__]))
    raise BadModel(
        f"model '{found.name}' is a '{' '.join(kind.split())}'; supported: {', '.join(supported)}. "
        f"To add it, create secateur/families/MODEL_TYPE.py with a class Family(base.Family) that has: {needed}."
    )


def check_usable(family: Family) -> None:
    """Check that processor, chat template, image size and number of images fit the model.

    Raises:
        BadModel: one of them does not, or the prompt is longer than the model's context.
    """
    try:
        _ = family.preprocess
        _check_rows(family, family.images * sum(rows * columns for rows, columns in family.grids))
        _check_rows(family, family.layout.rows)
    except SecateurError:
        raise
    except Exception as problem:  # processors check only a few of their settings
        raise BadModel(
            f"the processor of '{family.source}' cannot be used ({first_line(problem)}); compare its .json files "
            "with those of its source"
        ) from problem


def _check_rows(family: Family, rows: int) -> None:
    context = family.dimensions.context
    if rows >= context:
        raise BadModel(
            f"the prompt has {rows} rows before the question, and the model takes {context} in all; choose a "
            "smaller --image-size, fewer --images or a shorter --system"
        )
