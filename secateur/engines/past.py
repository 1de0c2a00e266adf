# SPDX-License-Identifier: Apache-2.0
"""Whether the first question has no past at all, or one row that the mask hides. Decided here and nowhere else.

TensorRT takes empty tensors and a least size of 0 in a profile ("Working with Empty Tensors" in its guide; trtexec
allocates a byte for them, samples/common/sampleInference.cpp). No version is known to refuse them. Should one, build
with --masked-past: the profiles then start at one row, and the runtime reads that from engines.json.
"""

from __future__ import annotations

from secateur.engines.version import Version

REFUSE_EMPTY: frozenset[Version] = frozenset()
"""Versions (major, minor) known to refuse a past of zero rows."""


def first_past(version: Version | None, masked: bool = False) -> int:
    """Rows that the past of the first question has: 0, or 1 masked row.

    version  the TensorRT that builds, None if it is not known
    masked   the user asks for the masked row
    """
    refused = version is not None and Version(version.major, version.minor) in REFUSE_EMPTY
    return int(masked or refused)
