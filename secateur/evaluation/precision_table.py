# SPDX-License-Identifier: Apache-2.0
"""Accuracy of one model in several precisions: the same questions to every schedule of each bundle.

The other bundles are compared with the first one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from secateur.bundle.reader import Bundle
from secateur.errors import BadBundle, InputError
from secateur.evaluation import batching
from secateur.evaluation.compare import mcnemar, retention
from secateur.evaluation.results import Interval, McNemar
from secateur.evaluation.tasks.base import Task
from secateur.progress import Progress, silent
from secateur.runtime import Pipeline


@dataclass(frozen=True)
class Cell:
    """One schedule of one bundle.

    score     mean over the questions, with its 95 % bootstrap interval
    compared  with the same schedule of the first bundle, question by question; None for the first bundle
    """

    score: float
    interval: Interval
    compared: McNemar | None


@dataclass(frozen=True)
class Line:
    """One bundle. `decoder_bytes` are the weights of the decoder's segments, `bytes` those of all graphs."""

    dtype: str
    weights: str
    backend: str
    decoder_bytes: int
    bytes: int
    cells: dict[str, Cell]


def table(
    bundles: Sequence[Bundle], task: Task, batch: int = batching.BATCH, progress: Progress = silent
) -> list[Line]:
    """Return a line for each bundle; torch runs bundles in bf16, ONNX Runtime all others.

    Raises:
        InputError: no bundle, an empty batch, or a task whose questions can be half right.
        BadBundle: the bundles differ in the model or in the schedules.
    """
    if not bundles:
        raise InputError("there is no bundle to measure; give at least one")
    if batch < 1:
        raise InputError(f"--batch is {batch}; it must be at least 1")
    if not task.binary:
        raise InputError(
            "the questions of this task can be half right, so answers cannot be compared; use another task"
        )
    first: dict[str, NDArray[np.float64]] = {}
    lines = []
    for bundle in bundles:
        manifest = bundle.manifest
        if manifest.model != bundles[0].manifest.model or set(manifest.schedules) != set(bundles[0].manifest.schedules):
            raise BadBundle(
                f"{bundle.root} and {bundles[0].root} differ in model or schedules; export both with the same options"
            )
        backend = "torch" if manifest.dtype == "bf16" else "ort"
        with Pipeline.load(bundle.root, backend, verify=False) as vlm:
            names = list(bundles[0].manifest.schedules)
            scores = batching.scores(vlm, task, names, task.max_new_tokens, batch, progress)
        cells = {name: _cell(scores[name], first.get(name), task) for name in names}
        first = first or scores
        how = manifest.quantization
        weights = manifest.dtype if how is None else str(how)
        lines.append(Line(manifest.dtype, weights, backend, *weight_bytes(bundle), cells))
    return lines


def _cell(ours: NDArray[np.float64], first: NDArray[np.float64] | None, task: Task) -> Cell:
    metric = task.metric
    found = retention(
        lambda weights: task.metrics(ours, weights)[metric],
        lambda weights: task.metrics(ours if first is None else first, weights)[metric],
        [q.picture for q in task.questions],
    )
    compared = None if first is None else mcnemar(ours, first)
    return Cell(found.score, found.score_interval, compared)


def weight_bytes(bundle: Bundle) -> tuple[int, int]:
    """Return the bytes of the weights of the decoder's segments, and of all graphs; shared weights count once."""
    decoder, every = 0, 0
    seen: set[tuple[Path, int]] = set()
    for graph in bundle.manifest.graphs:
        path = bundle.path(graph.file)
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                entries = {entry.key: entry.value for entry in tensor.external_data}
                place = (path.parent / entries["location"]).resolve(), int(entries.get("offset", 0))
                if place in seen:
                    continue
                seen.add(place)
                size = int(entries["length"])
            else:
                size = len(tensor.raw_data) or onnx.numpy_helper.to_array(tensor).nbytes
            every += size
            decoder += size if graph.kind == "segment" else 0
    return decoder, every


def markdown(lines: Sequence[Line]) -> str:
    """Format the table; a score has its interval, and the numbers of answers lost and won against the first line."""
    names = list(lines[0].cells)
    rows = [["activations", "decoder weights", "run by", "decoder MB", "all MB", *names]]
    rows.append(["---"] * len(rows[0]))
    for line in lines:
        size = [f"{line.decoder_bytes / 1e6:.2f}", f"{line.bytes / 1e6:.2f}"]
        rows.append([line.dtype, line.weights, line.backend, *size, *(_shown(line.cells[name]) for name in names)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _shown(cell: Cell) -> str:
    low, high = cell.interval
    text = f"{100 * cell.score:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    return text if cell.compared is None else f"{text} -{cell.compared.only_full} +{cell.compared.only_this}"
