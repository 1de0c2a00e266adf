# SPDX-License-Identifier: Apache-2.0
"""Toy statistics on which tuning the ALVTS selectors really helps, so that tests see more than the decomposition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from secateur.methods.alvts import Method
from secateur.selection.statistics import LayerRows, Statistics

RATE = 1e-2
METHOD = Method(learning_rate=RATE)


def learnable(statistics: Statistics) -> Statistics:
    """Softer attention, and the same sample throughout: what is learnt in training holds for the held-out ones."""
    layers = statistics.layers
    assert layers is not None

    def walk() -> Iterator[LayerRows]:
        for layer in layers():
            layer.projections.query = 0.5 * layer.projections.query
            layer.projections.key = 0.5 * layer.projections.key
            yield layer._replace(rows=[layer.rows[0]] * len(layer.rows))

    return replace(statistics, layers=walk)
