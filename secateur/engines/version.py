# SPDX-License-Identifier: Apache-2.0
"""TensorRT versions, the oldest version that each export target supports, and attention in a given version."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from secateur.bundle.manifest import Manifest
from secateur.errors import BadBundle, InputError


class Version(NamedTuple):
    """A TensorRT version, compared as a tuple. `str` gives "10.3", or all four numbers if patch or build is set."""

    major: int
    minor: int
    patch: int = 0
    build: int = 0

    @classmethod
    def parse(cls, text: str) -> Version:
        """Parse "10.3", "10.16.1.11" or a package version such as "10.3.0.30+cuda12.6".

        Raises:
            InputError: the text is not a version.
        """
        found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6}){1,3})(?:[.+-]?[a-z][\w.+-]*)?", text)
        if not found:
            raise InputError(f"'{text}' is not a TensorRT version; write it as 10.3 or 10.16.1.11")
        return cls(*map(int, found[1].split(".")))

    def __str__(self) -> str:
        parts = self if self.patch or self.build else self[:2]
        return ".".join(str(part) for part in parts)


FLOORS = {"tensorrt": Version(10, 3), "tensorrt-10.15": Version(10, 15)}
"""Oldest TensorRT version of each export target (--target). Other targets are not for TensorRT."""


def check_target(manifest: Manifest, version: Version | None = None) -> None:
    """Check that a bundle was exported for TensorRT, and for this version of it.

    Raises:
        BadBundle: it was not; the message names the target to export for.
    """
    floor = FLOORS.get(manifest.target)
    if floor is None:
        raise BadBundle(
            f"the bundle was exported for the target '{manifest.target}', not for TensorRT; "
            f"export it with --target {next(iter(FLOORS))}"
        )
    if version is not None and version < floor:
        fitting = [name for name, oldest in FLOORS.items() if version >= oldest]
        mend = f"export with --target {fitting[-1]}" if fitting else f"install TensorRT {floor} or later"
        raise BadBundle(f"the target '{manifest.target}' needs TensorRT {floor}, this is {version}; {mend}")


ATTENTION = Version(10, 14)
"""First version with the attention layer. trtexec has a flag for its decomposition only since 10.16."""


def allow_decomposition(trt: Any, network: Any) -> None:
    """Mark every attention layer of a parsed network as decomposable.

    Without it, a build fails where TensorRT has no fused kernel for the layer's shape, mask and GPU.
    """
    if Version.parse(trt.__version__) < ATTENTION:
        return
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # get_layer returns each layer as ILayer
            layer.attention.decomposable = True


def trtexec_notes(manifest: Manifest) -> list[str]:
    """Return notes for a user who builds the bundle with trtexec."""
    if FLOORS.get(manifest.target, ATTENTION) < ATTENTION:
        return []
    return [
        "if trtexec finds no implementation for an attention layer, build with `secateur build`, which allows "
        "its decomposition; trtexec has --decomposableAttentions for this since 10.16"
    ]
