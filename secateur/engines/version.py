# SPDX-License-Identifier: Apache-2.0
"""TensorRT versions, and the oldest one that a bundle supports."""

from __future__ import annotations

import re
from typing import NamedTuple

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


TARGET = "tensorrt"
"""The export target (--target) for TensorRT."""


def floor(target: str, opset: int) -> Version | None:
    """Return the oldest TensorRT version for graphs of this target and opset; None for another target.

    TensorRT 10.3 parses opset 20 at most. Opset 21 is for weights as int4 in blocks, which 10.15 documents.
    """
    if target != TARGET:
        return None
    return Version(10, 3) if opset <= 20 else Version(10, 15)


def check_target(manifest: Manifest, version: Version | None = None) -> None:
    """Check that a bundle was exported for TensorRT, and for this version of it.

    Raises:
        BadBundle: it was not; the message names the mend.
    """
    oldest = floor(manifest.target, manifest.opset)
    integers = manifest.quantization
    if oldest is None and integers is not None:
        raise BadBundle(
            f"the bundle has weights as {integers.name} for ONNX Runtime (target '{manifest.target}'); "
            f"export it with --target {TARGET}, and without --quantize or with --quantize int4"
        )
    if oldest is None:
        raise BadBundle(
            f"the bundle was exported for the target '{manifest.target}', not for TensorRT; "
            f"export it with --target {TARGET}"
        )
    if version is None or version >= oldest:
        return
    if manifest.quantization is None:
        raise BadBundle(f"the bundle needs TensorRT {oldest}, this is {version}; install TensorRT {oldest} or later")
    raise BadBundle(
        f"the weights as {manifest.quantization.name} need TensorRT {oldest}, this is {version}; export without "
        f"--quantize"
    )
