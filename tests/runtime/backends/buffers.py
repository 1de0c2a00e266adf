# SPDX-License-Identifier: Apache-2.0
"""Buffers for a run of segment_0 of the hand-made bundle, on any backend."""

from __future__ import annotations

from typing import Any

import numpy as np

from secateur.runtime.backends.base import Backend


def segment(backend: Backend, rows: int = 3, past: int = 2, batch: int = 2) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return inputs and outputs of segment_0; inputs are random."""
    rng = np.random.default_rng(0)

    def uploaded(array: Any) -> Any:
        buffer = backend.allocate(array.shape, array.dtype)
        buffer.write(array)
        return buffer

    def filled(*shape: int) -> Any:
        return uploaded(rng.normal(size=shape).astype(np.float32))

    inputs = {
        "hidden_states": filled(batch, rows, 16),
        "position_ids": uploaded(np.arange(past, past + rows)[None].repeat(batch, axis=0)),
        "attention_mask": uploaded(np.ones((batch, past + rows), np.int64)),
        "last_index": uploaded(np.full(batch, rows - 1)),
        "past_key.0": filled(past, batch, 2, 4),
        "past_value.0": filled(past, batch, 2, 4),
    }
    outputs = {name: backend.allocate((rows, batch, 2, 4), np.float32) for name in ("new_key.0", "new_value.0")}
    outputs["hidden_states.out"] = backend.allocate((batch, rows, 16), np.float32)
    outputs |= {name: backend.allocate((batch, 4, 4), np.float32) for name in ("query", "text_query")}
    return inputs, outputs


def check_rows_are_written_into_a_view(backend: Backend, past: int) -> None:
    """New rows go to their place in a larger buffer, and nothing else there changes."""
    inputs, outputs = segment(backend, past=past)
    backend.run("segment_0", inputs, outputs)
    cache = backend.allocate((past + 7, 2, 2, 4), np.float32)
    cache.numpy()[:] = 5
    cache.view(slice(0, past)).write(inputs["past_key.0"])
    placed = outputs | {"new_key.0": cache.view(slice(past, past + 3))}
    backend.run("segment_0", inputs | {"past_key.0": cache.view(slice(0, past))}, placed)
    assert np.array_equal(cache.numpy()[past : past + 3], outputs["new_key.0"].numpy())
    assert np.array_equal(cache.numpy()[:past], inputs["past_key.0"].numpy())
    assert (cache.numpy()[past + 3 :] == 5).all()
