# SPDX-License-Identifier: Apache-2.0
"""What a plan is built from: which files, and all of it as one hash.

The same hash means the same plan on the same device and TensorRT.
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


def files(manifest: Manifest, root: Path, graph: GraphSpec) -> tuple[str, ...]:
    """The graph's ONNX file and the files of weights that it names, which may be those of another graph.

    root  folder of the bundle

    An ONNX file holds the names of its external files as plain text and they lie beside it, so the names that the
    manifest has are looked for in its bytes. A name that is found by chance costs no more than a needless build.
    """
    onnx = PurePosixPath(graph.file)
    text = (root / onnx).read_bytes()
    beside = (name for name in manifest.files if PurePosixPath(name).parent == onnx.parent and name.endswith(WEIGHTS))
    return (graph.file, *sorted(name for name in beside if PurePosixPath(name).name.encode() in text))


def identity(manifest: Manifest) -> str:
    """sha256 (hex) over the model, the target and every graph: two bundles with the same one have the same times."""
    graphs = {name: digest for name, digest in manifest.files.items() if name.endswith(ONNX)}
    parts = [manifest.model.fingerprint, manifest.target, graphs]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def source(
    manifest: Manifest,
    root: Path,
    graph: GraphSpec,
    profiles: Sequence[Profile],
    flags: Mapping[str, int | str | bool],
) -> str:
    """sha256 (hex) over the graph's files, its profiles and the builder's flags.

    The files are named by the hashes that the manifest holds, which `Bundle.load` compares with the files.
    """
    parts = {
        "files": {name: manifest.files[name] for name in files(manifest, root, graph)},
        "profiles": [dataclasses.asdict(profile) for profile in profiles],
        "flags": dict(flags),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
