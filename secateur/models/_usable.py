# SPDX-License-Identifier: Apache-2.0
"""Whether images and prompts can be prepared for a view of a model, found out before any work is put into it."""

from __future__ import annotations

from secateur.errors import BadModel, SecateurError
from secateur.models._loading import first_line
from secateur.models.base import Family


def check(family: Family) -> None:
    """See that processor, chat template, image size and number of images fit the model.

    Raises:
        BadModel: one of them does not, or the prompt is longer than the model's context.
    """
    try:
        _ = family.preprocess
        _check_rows(family, family.images * sum(rows * columns for rows, columns in family.grids))
        _check_rows(family, family.layout.rows)
    except SecateurError:
        raise
    except Exception as problem:  # processors check few of their settings
        raise BadModel(
            f"the processor of '{family.source}' cannot be used ({first_line(problem)}); compare its .json files "
            "with those where it comes from"
        ) from problem


def _check_rows(family: Family, rows: int) -> None:
    context = family.dimensions.context
    if rows >= context:
        raise BadModel(
            f"the prompt has {rows} rows before the question, and the model takes {context} in all; choose a "
            "smaller --image-size, fewer --images or a shorter --system"
        )
