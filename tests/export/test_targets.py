# SPDX-License-Identifier: Apache-2.0
"""Targets: dtypes, and where the weights are."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.bundle.reader import Bundle
from secateur.engines import build
from secateur.engines.manifest import Limits
from secateur.engines.shapes import profiles
from secateur.errors import BadBundle, InputError, UnknownName
from secateur.export.bundle import ExportPlan, export, shared_weight_files
from secateur.export.targets import BAKED, SHARED, TARGETS, target
from secateur.families.base import Family


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tensort",), "Did you mean 'tensorrt'"),
        (("tensorrt", "fp8"), "dtype 'fp8' is not known; use one of fp32, fp16, bf16"),
        (("cpu", "bf16"), "no bf16; use --dtype fp16 or fp32, or --target cuda"),
        (("tensorrt", None, "inside"), "weights 'inside' are not known; use shared or baked"),
        (("cpu", None, SHARED), "--weights shared is for TensorRT; target 'cpu' maps its weights: leave it out"),
    ],
)
def test_wrong_targets(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises((InputError, UnknownName), match=message.replace("(", r"\(")):
        target(*arguments)


def test_defaults() -> None:
    assert {name for name, kind in TARGETS.items() if kind.weights == SHARED} == {"tensorrt"}
    assert target("tensorrt").weights == SHARED and target("tensorrt", weights=BAKED).weights == BAKED
    assert target("cpu", weights=BAKED) == target("cpu")


def test_baked_weights_are_in_every_profile(tiny: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user is told how many bytes the plans hold twice, and other bundles cannot share the files."""
    monkeypatch.setattr(build, "LARGE", 1)
    for kind in (target("tensorrt", "fp32", weights) for weights in (SHARED, BAKED)):
        out = tmp_path / kind.weights
        manifest = export([ExportPlan(tiny, ())], kind, out, verify=False).manifest
        bundle = Bundle.load(out)
        repeated = build.repeated_weights(bundle, profiles(manifest, Limits(1, 20, 10), "full"))
        linear = sum(w.nbytes for layer in tiny.decoder.layers for w in layer.parameters() if w.dim() > 1)
        assert bool(manifest.weights) == (kind.weights == SHARED)
        assert (repeated > linear) == (kind.weights == BAKED)
    with pytest.raises(BadBundle, match="exported with shared weights, .* than baked ones; leave --share out"):
        shared_weight_files(tmp_path / SHARED, tiny, target("tensorrt", "fp32", BAKED))
