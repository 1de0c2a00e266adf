# SPDX-License-Identifier: Apache-2.0
"""TensorRT versions: how they compare, and the oldest one that each export target is made for."""

from __future__ import annotations

import re
from typing import NamedTuple

from secateur.errors import InputError


class Version(NamedTuple):
    """A TensorRT version; compares as a tuple. `str` gives "10.3", or all four numbers if the last two are set."""

    major: int
    minor: int
    patch: int = 0
    build: int = 0

    @classmethod
    def parse(cls, text: str) -> Version:
        """ "10.3", "10.16.1.11" or, with what a package adds, "10.3.0.30+cuda12.6"

        Raises:
            InputError: it is no version.
        """
        found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6}){1,3})(?:[.+-]?[a-z][\w.+-]*)?", text)
        if not found:
            raise InputError(f"'{text}' is no TensorRT version; write it as 10.3 or 10.16.1.11")
        return cls(*map(int, found[1].split(".")))

    def __str__(self) -> str:
        parts = self if self.patch or self.build else self[:2]
        return ".".join(str(part) for part in parts)


FLOORS = {"tensorrt": Version(10, 3), "tensorrt-10.15": Version(10, 15)}
"""Oldest TensorRT of each export target (--target); other targets are not for TensorRT."""
