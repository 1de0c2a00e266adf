# SPDX-License-Identifier: Apache-2.0
"""A decode step with fixed shapes and buffers, so that a device can record it once and replay it.

The step attends to the whole cache and masks empty rows. New rows are written to separate buffers and copied to the
cache after the step.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from secateur.bundle.graph_plan import reads_rotary
from secateur.bundle.layout import Ints
from secateur.bundle.manifest import GraphSpec, Manifest, TensorSpec
from secateur.bundle.symbolic_shape import bind, resolve_shapes
from secateur.runtime.backends.base import Array, Backend, Buffer
from secateur.runtime.cache import KVCache, row
from secateur.runtime.decoder_inputs import TokenBatch


class RecordedStep:
    """Runs one row of each sample through embed, rotary and every decoder segment, on the buffers of `cache`."""

    def __init__(self, backend: Backend, manifest: Manifest, cache: KVCache) -> None:
        self._backend, self._segments = backend, manifest.segments
        self._written: dict[str, Buffer] = {}
        """Inputs that are written before every step, by name and segment."""
        self._runs: list[tuple[str, dict[str, Buffer], dict[str, Buffer]]] = []
        self._new: list[Buffer] = []
        """New keys and values of each segment [2 * layers,B,Hkv,dh], see `KVCache.append`."""
        batch = cache.batch
        self._written["input_ids"] = backend.allocate((batch, 1), np.int64)
        self._written["last_index"] = backend.allocate((batch,), np.int64)
        hidden = self._plan(manifest.graph("embed"), self._written, {})["hidden_states"]
        axes, tables = manifest.layout.axes, dict[int, dict[str, Buffer]]()
        positions = (batch, 1) if axes == 1 else (axes, batch, 1)
        for i, segment in enumerate(self._segments):
            mask = self._written[f"attention_mask.{i}"] = backend.allocate((batch, cache.capacity[i] + 1), np.int64)
            position = f"position_ids.{cache.shift[i]}"
            shapes = resolve_shapes(segment.inputs, {"B": batch, "S": 1, "P": cache.capacity[i]})
            if position not in self._written:
                self._written[position] = backend.allocate(positions, np.int64)
            if cache.shift[i] not in tables and reads_rotary(segment):
                given = {"position_ids": self._written[position]}
                tables[cache.shift[i]] = self._plan(manifest.graph("rotary"), given, {})
            named = {spec.name: backend.allocate(shapes[spec.name], spec.dtype) for spec in _constants(segment)} | {
                **tables.get(cache.shift[i], {}),
                "hidden_states": hidden,
                "position_ids": self._written[position],
                "attention_mask": mask,
                "last_index": self._written["last_index"],
            }
            layers = range(*(segment.layers or (0, 0)))
            shape, dtype = row(segment, batch)
            new = backend.allocate((2 * len(layers), *shape), dtype)
            places: dict[str, Buffer] = {}
            for n, layer in enumerate(layers):
                named[f"past_key.{layer}"], named[f"past_value.{layer}"] = cache.whole(layer)
                places[f"new_key.{layer}"] = new.view(slice(2 * n, 2 * n + 1))
                places[f"new_value.{layer}"] = new.view(slice(2 * n + 1, 2 * n + 2))
            given = self._plan(segment, named, places)
            hidden = given.get("hidden_states", hidden)
            self._new.append(new)
        self._logits = given["logits"]

    def run(self, rows: TokenBatch, cache: KVCache) -> NDArray[np.float32]:
        """Run a row of each sample, append it to `cache` (the same as for `__init__`), and return logits [B,V].

        Raises:
            BadPrompt: the cache has no room.
        """
        written = self._written
        for i in range(len(self._segments)):
            cache.check_room(i, 1)
        written["input_ids"].write(rows.input_ids)
        for shift in set(cache.shift):
            position = written[f"position_ids.{shift}"]
            position.write(np.broadcast_to(rows.position_ids - shift, position.shape))
        for i in range(len(self._segments)):
            written[f"attention_mask.{i}"].write(_mask(cache, i, rows.attention_mask))
        self._backend.repeat(self, self._launch)
        for i, new in enumerate(self._new):
            cache.append(i, new)
        logits: Array = self._logits.numpy()
        cache.advance([rows.attention_mask] * len(self._segments), rows.lengths)
        return logits.astype(np.float32, copy=True)

    def _plan(self, graph: GraphSpec, named: Mapping[str, Buffer], places: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Add a run of `graph` to the step; return its outputs by the name of the next graph's input.

        named   buffers of the inputs
        places  existing buffers for some of the outputs
        """
        inputs = {spec.name: named[spec.name] for spec in graph.inputs}
        symbols = bind(graph.inputs, {name: buffer.shape for name, buffer in inputs.items()})
        shapes = resolve_shapes(graph.outputs, symbols)
        outputs = {
            x.name: places[x.name] if x.name in places else self._backend.allocate(shapes[x.name], x.dtype)
            for x in graph.outputs
        }
        self._runs.append((graph.name, inputs, outputs))
        return {spec.flows_to: outputs[spec.name] for spec in graph.outputs}

    def _launch(self) -> None:
        for name, inputs, outputs in self._runs:
            self._backend.run(name, inputs, outputs)


def _constants(segment: GraphSpec) -> list[TensorSpec]:
    """Return inputs that are always zero in a decode step: planes, and the position of the question."""
    return [x for x in segment.inputs if x.name.startswith("deepstack.") or x.name == "question_position"]


def _mask(cache: KVCache, segment: int, now: Ints) -> Ints:
    """Return the mask [B,capacity+1]: filled rows, empty rows, and the new row."""
    filled = cache.mask(segment)
    empty = np.zeros((cache.batch, cache.capacity[segment] - filled.shape[1]), np.int64)
    return np.concatenate([filled, empty, now], axis=1)
