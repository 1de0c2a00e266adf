# SPDX-License-Identifier: Apache-2.0
"""Values of the integer inputs of a timing case, for trtexec --loadInputs: raw bytes in C order.

trtexec draws integers from [-128, 127], which would be indices out of range. Its floats from [-1, 1] are suitable, so
only integers are written. Empty tensors need no values.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secateur.bundle.atomic import write_bytes
from secateur.bundle.manifest import GraphSpec, Manifest, TensorSpec
from secateur.bundle.schedule import ENCODER_GATES
from secateur.engines.cases import Case
from secateur.errors import BadBundle

Ints = NDArray[np.int64]


def values(manifest: Manifest, case: Case) -> dict[str, Ints]:
    """Return the integer inputs of a case by name, int64, in its shapes. Equal cases give equal values.

    Raises:
        BadBundle: an integer input has an unknown name.
    """
    graph = manifest.graph(case.graph)
    past = next((case.shapes[spec.name][0] for spec in graph.inputs if spec.name.startswith("past_")), 0)
    return {spec.name: _value(manifest, case, graph, spec, past) for spec in _integers(case, graph)}


def files(manifest: Manifest, case: Case) -> dict[str, str]:
    """Input-file path for each input, relative to the folder of the cases."""
    names = [spec.name for spec in _integers(case, manifest.graph(case.graph))]
    return {name: f"{case.inputs}/{name}.bin" for name in names}


def write(manifest: Manifest, case: Case, folder: Path) -> None:
    """Write the input files of a case into `folder`.

    Raises:
        BadOutput: a file cannot be written.
    """
    made = values(manifest, case)
    for name, file in files(manifest, case).items():
        write_bytes(folder / file, np.ascontiguousarray(made[name]).tobytes())


def _integers(case: Case, graph: GraphSpec) -> Iterator[TensorSpec]:
    return (spec for spec in graph.inputs if spec.dtype.startswith("int") and 0 not in case.shapes[spec.name])


def _value(manifest: Manifest, case: Case, graph: GraphSpec, spec: TensorSpec, past: int) -> Ints:
    shape = case.shapes[spec.name]
    columns = np.arange(shape[-1], dtype=np.int64)
    match spec.name.removeprefix("full_"):
        case "input_ids":
            row = columns % manifest.dimensions.vocabulary
        case "vision_index":
            row = _spread(manifest, graph.name)
        case "position_ids":  # in a decode step the cache may fill the whole context
            row = np.minimum(past + columns, manifest.dimensions.context - 1)
        case "attention_mask":  # the past of a prefill consists of masked rows
            row = (columns >= (past if case.kind == "prefill" else 0)).astype(np.int64)
        case "last_index":
            rows = case.shapes["hidden_states"][1]
            row = np.full(shape[-1], rows - 1, np.int64)
        case "question_position":
            row = np.full(shape[-1], manifest.layout.next_position, np.int64)
        case _:
            raise BadBundle(
                f"graph '{graph.name}' has the integer input '{spec.name}', for which no values are defined"
            )
    return np.broadcast_to(row, shape).astype(spec.dtype)


def _spread(manifest: Manifest, gate: str) -> Ints:
    """Return the ascending indices of a gate's input vision tokens, evenly spaced in each view."""
    for bucket in manifest.buckets:
        for ref in bucket.schedules.values():
            for number, found in enumerate(ref.gates):
                if found.graph != gate:
                    continue
                layout = bucket.layout
                members = layout.members[: len(layout.image_views) if found.kind in ENCODER_GATES else None]
                counts = ref.gates[number - 1].of_views if number else [len(own) for own in members]
                parts = [
                    own[np.arange(count, dtype=np.int64) * len(own) // max(1, count)]
                    for own, count in zip(members, counts, strict=True)
                ]
                return np.sort(np.concatenate(parts))
    raise BadBundle(f"no schedule runs the graph '{gate}'; export the bundle again")
