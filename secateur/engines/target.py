# SPDX-License-Identifier: Apache-2.0
"""Whether a bundle was exported for TensorRT at all, and for the version at hand."""

from __future__ import annotations

from secateur.bundle.manifest import Manifest
from secateur.engines.version import FLOORS, Version
from secateur.errors import BadBundle


def check_target(manifest: Manifest, version: Version | None = None) -> None:
    """The bundle's graphs are for TensorRT, and for `version`.

    Raises:
        BadBundle: they are not; the message says what to export.
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
