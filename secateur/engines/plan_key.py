# SPDX-License-Identifier: Apache-2.0
"""Key of a plan: sha256 over everything that the plan is built from.

Equal keys mean equal plans, on the same device and TensorRT version.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from secateur.bundle.manifest import GraphSpec, Manifest
from secateur.engines.manifest import Profile

ONNX, WEIGHTS = ".onnx", ".data"


def graph_files(manifest: Manifest, root: Path, graph: GraphSpec) -> tuple[str, ...]:
    """Return the graph's ONNX file and the weight files it references, which other graphs may share.

    root  folder of the bundle

    An ONNX file stores the names of its external files as plain text, and these files are in the same folder. So the
    names in the manifest are searched for in its bytes. A false match only causes an unnecessary build.
    """
    onnx = PurePosixPath(graph.file)
    text = (root / onnx).read_bytes()
    beside = (name for name in manifest.files if PurePosixPath(name).parent == onnx.parent and name.endswith(WEIGHTS))
    return (graph.file, *sorted(name for name in beside if PurePosixPath(name).name.encode() in text))


def identity(manifest: Manifest) -> str:
    """Return the sha256 (hex) over model, target and all graphs. Timings are valid for bundles with the same value."""
    graphs = {name: digest for name, digest in manifest.files.items() if name.endswith(ONNX)}
    parts = [manifest.model.fingerprint, manifest.target, graphs]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def plan_key(
    manifest: Manifest,
    root: Path,
    graph: GraphSpec,
    profiles: Sequence[Profile],
    flags: Mapping[str, int | str | bool],
) -> str:
    """Return the sha256 (hex) over the graph's files, its profiles and the builder's flags.

    Uses the file hashes in the manifest, which `Bundle.load` has checked against the files.
    """
    parts = {
        "files": {name: manifest.files[name] for name in graph_files(manifest, root, graph)},
        "profiles": [dataclasses.asdict(profile) for profile in profiles],
        "flags": dict(flags),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
