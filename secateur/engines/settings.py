# SPDX-License-Identifier: Apache-2.0
"""What the builder is told, apart from shapes; the same for trtexec and for the Python API."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.errors import InputError

MAX_WORKSPACE_MIB = 1 << 20


@dataclass(frozen=True)
class BuilderSettings:
    """Options of a build.

    workspace_mib       most memory that a layer may use beside its tensors; TensorRT's own default is all of the
                        device's, which on a Jetson is what the host needs
    optimization_level  0 to 5, quick build to quick engine
    max_aux_streams     0 takes least memory, and makes layer times add up
    """

    workspace_mib: int = 2048
    optimization_level: int = 3
    max_aux_streams: int = 0

    def __post_init__(self) -> None:
        for flag, value, most in (
            ("--workspace", self.workspace_mib, MAX_WORKSPACE_MIB),
            ("--optimization-level", self.optimization_level, 5),
            ("--max-aux-streams", self.max_aux_streams, 64),
        ):
            least = 1 if flag == "--workspace" else 0
            if not least <= value <= most:
                raise InputError(f"{flag} is {value}; it must be within {least} and {most}")
