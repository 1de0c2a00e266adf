# SPDX-License-Identifier: Apache-2.0
"""What a plan was built from, as one hash: the same hash, the same plan on the same device and TensorRT."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence

from secateur.artifacts import GraphSpec, Manifest
from secateur.engines.manifest import Profile


def source(
    manifest: Manifest, graph: GraphSpec, profiles: Sequence[Profile], flags: Mapping[str, int | str | bool]
) -> str:
    """sha256 (hex) over the graph's ONNX file, its weights, its profiles and the builder's flags.

    The files are named by the hashes that the manifest holds, which `Bundle.load` compares with the files.
    """
    parts = {
        "onnx": manifest.files[graph.file],
        "weights": manifest.files.get(f"{graph.file}.data", ""),
        "profiles": [dataclasses.asdict(profile) for profile in profiles],
        "flags": dict(flags),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
