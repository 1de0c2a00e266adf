# SPDX-License-Identifier: Apache-2.0
"""The slowest layers of a graph: their times, and what the engine says they were made of."""

from __future__ import annotations

from pathlib import Path

from secateur.engines.cases import Case
from secateur.engines.results.layer_info import Layer, read_layer_info, split_profile
from secateur.engines.results.layer_times import read_layer_times
from secateur.profiling.results import LayerLine

SHOWN = 5
SELECTING = ("topk", "gather")


def slowest(folder: Path, case: Case) -> tuple[LayerLine, ...]:
    """The first few layers of a case by time; empty where trtexec was not asked for them.

    Raises:
        BadMeasurement: a file is damaged.
    """
    if not (folder / case.layer_times).exists():
        return ()
    known = _layers(folder / case.layers, case.profile)
    layers = read_layer_times(folder / case.layer_times)
    whole = sum(layer.median for layer in layers)
    lines = []
    for layer in sorted(layers, key=lambda layer: -layer.median)[:SHOWN]:
        name = split_profile(layer.name)[0]
        info = known.get(name, Layer(name))
        lines.append(
            LayerLine(name, info.type, info.nodes, layer.median, layer.median / whole if whole else 0.0, _selects(info))
        )
    return tuple(lines)


def _layers(path: Path, profile: int) -> dict[str, Layer]:
    """Layers of one optimisation profile by name; none where there is no file."""
    if not path.exists():
        return {}
    return {layer.name: layer for layer in read_layer_info(path) if layer.profile in (None, profile)}


def _selects(layer: Layer) -> bool:
    words = " ".join((layer.name, layer.type, layer.tactic, *layer.nodes)).lower()
    return any(word in words for word in SELECTING)
