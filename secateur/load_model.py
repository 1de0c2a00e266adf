# SPDX-License-Identifier: Apache-2.0
"""Load the model of a checkpoint as a family, and check that its images and prompts can be prepared."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from secateur import families, plugins
from secateur.checkpoints.checkpoint import Checkpoint
from secateur.checkpoints.config import check_config, check_files, read_config
from secateur.checkpoints.hub import DEMO, Found, resolve
from secateur.checkpoints.weights import first_line
from secateur.errors import BadModel, SecateurError
from secateur.families.base import Family


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


def load(source: str = DEMO, dtype: torch.dtype = torch.float32, revision: str | None = None) -> Family:
    """Load the demo model, a local checkpoint directory or a hub id; safetensors only, no remote code.

    `revision` is a branch, tag or commit of a hub id, which may also be given as org/name@revision.

    Raises:
        BadModel: the checkpoint is missing, incomplete, quantized, has only pickles, needs its own code, or is of a
            family that is not supported.
    """
    found = resolve(source, revision)
    config = read_config(found)
    family = _family(found, config)
    check_config(found, config, family.architecture.__name__)
    check_files(found)
    try:
        Checkpoint.open(found.folder)
        loaded = family.from_pretrained(str(found.folder), found.name)
    except (SecateurError, ImportError, MemoryError):
        raise
    except Exception as problem:  # transformers raises many types of errors for unexpected settings
        raise BadModel(
            f"model '{found.name}' cannot be loaded ({first_line(problem)}); compare its .json files with "
            "those of its source"
        ) from problem
    loaded.to(dtype)
    return loaded


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
