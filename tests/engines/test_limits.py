# SPDX-License-Identifier: Apache-2.0
"""Limits of a build: defaults that fit the model, and refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.bundle.manifest import Manifest
from secateur.engines.manifest import BuilderSettings, Limits
from secateur.engines.shapes import limits
from secateur.errors import InputError
from secateur.export.bundle import Exported


@pytest.fixture(scope="module")
def manifest(trt_bundle: tuple[Path, Exported]) -> Manifest:
    return trt_bundle[1].manifest


def long(manifest: Manifest, context: int) -> Manifest:
    return dataclasses.replace(manifest, dimensions=dataclasses.replace(manifest.dimensions, context=context))


def test_usual_limits(manifest: Manifest) -> None:
    assert limits(long(manifest, 4096)) == Limits(1, 256, 128)


@given(room=st.integers(2, 600), text=st.none() | st.integers(1, 300), new=st.none() | st.integers(1, 300))
def test_defaults_fit_the_context(manifest: Manifest, room: int, text: int | None, new: int | None) -> None:
    image = manifest.layout.image_start + manifest.layout.vision_tokens
    short = long(manifest, image + room)
    if (text or 1) + (new or 1) > room:
        with pytest.raises(InputError, match=f"context has {image + room}; lower --max-text"):
            limits(short, 1, text, new)
        return
    made = limits(short, 1, text, new)
    assert made.text == (text or made.text) and made.new_tokens == (new or made.new_tokens)
    assert made.text >= 1 and made.new_tokens >= 1
    assert made.capacity(manifest.layout) <= image + room


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, None, None), "--max-batch is 0; it must be at least 1"),
        ((2000, None, None), "--max-batch is 2000; it must be at most 1024"),
        ((1, 0, None), "--max-text is 0; it must be at least 1"),
        ((1, None, -3), "--max-new-tokens is -3; it must be at least 1"),
    ],
)
def test_refused(manifest: Manifest, arguments: tuple[int, int | None, int | None], message: str) -> None:
    with pytest.raises(InputError, match=message):
        limits(manifest, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workspace_mib": 0}, "--workspace is 0; it must be between 1 and 1048576"),
        ({"optimization_level": 6}, "--optimization-level is 6; it must be between 0 and 5"),
        ({"max_aux_streams": -1}, "--max-aux-streams is -1; it must be between 0 and 64"),
    ],
)
def test_settings_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BuilderSettings(**arguments)
