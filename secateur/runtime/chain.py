# SPDX-License-Identifier: Apache-2.0
"""Run the graphs in order: vision, projector, embed, then each segment with the gate before it, up to the logits.

A gate is in the encoder (before the projector) or before a segment; `bundle.schedule.Gate` describes the kinds.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from secateur.bundle.graph_plan import dropped, reads_rotary
from secateur.bundle.layout import Ints
from secateur.bundle.manifest import GateRef, GraphSpec, Manifest
from secateur.bundle.schedule import ENCODER_GATES, FULL
from secateur.bundle.symbolic_shape import bind, resolve_shapes
from secateur.errors import InputError
from secateur.runtime.backends.base import Array, Backend, Buffer, register_dtype
from secateur.runtime.cache import KVCache, rounded
from secateur.runtime.decoder_inputs import EncodedImages, TokenBatch
from secateur.runtime.receipt import GateReceipt, Stopwatch, gate_receipt
from secateur.runtime.recorded_step import RecordedStep

Buffers = dict[str, Buffer]


@dataclass(frozen=True)
class Walk:
    """Results of one run of the decoder.

    logits        [B,V] float32, of the last row of each sample
    segment_rows  number of rows that each segment read
    gates, kept   receipt, and original vision-token indices [B,k], of each gate that was run
    """

    logits: NDArray[np.float32]
    segment_rows: tuple[int, ...]
    gates: tuple[GateReceipt, ...]
    kept: tuple[Ints, ...]


class Chain:
    """Runs the graphs of one manifest, for its first image size, on one backend.

    Buffers between graphs are reused.

    schedules  names of the schedules whose gates are loaded, besides "full"; None loads all
    lock       lock of the backend: chains for different image sizes share its graphs, so they take turns
    """

    def __init__(
        self,
        manifest: Manifest,
        backend: Backend,
        schedules: Sequence[str] | None = None,
        lock: threading.Lock | None = None,
    ) -> None:
        register_dtype(manifest.dtype)
        self.manifest = manifest
        wanted = manifest.schedules if schedules is None else (FULL, *schedules)
        self.schedules = tuple(name for name in manifest.schedules if name in wanted)
        self.backend = backend
        self._graphs = {graph.name: graph for graph in manifest.graphs}
        self._scratch: dict[tuple[str, str], Buffer] = {}
        self._steps: weakref.WeakKeyDictionary[KVCache, RecordedStep] = weakref.WeakKeyDictionary()
        self._spare: KVCache | None = None
        self._lock = lock or threading.Lock()  # all runs use the same scratch buffers
        gates = {gate.graph for name in self.schedules for gate in manifest.schedules[name].gates}
        for graph in manifest.graphs:
            if graph.kind != "gate" or graph.name in gates:
                backend.load(graph)

    def encode(self, pixels: Array, schedule: str, watch: Stopwatch) -> EncodedImages:
        """Encode pixel values [B*I,...] into vision tokens; runs the gate in the encoder if the schedule has one."""
        layout, images = self.manifest.layout, pixels.shape[0]
        index = own = np.tile(np.arange(layout.image_tokens, dtype=np.int64), (images, 1))
        gate = next((g for g in self.manifest.schedules[schedule].gates if g.kind in ENCODER_GATES), None)
        smaller = gate is not None and gate.kind == "downsample"
        dtype = np.dtype(self.manifest.vision.inputs[0].dtype)
        with self._lock, self.backend.clock(watch, "encode"):
            given = {
                "pixel_values": self._upload("pixel_values", pixels.astype(dtype)),
                "vision_index": self._upload("vision_index", own),
            }
            made = self._run(gate.graph if gate and smaller else layout.vision, given, watch)
            if gate and not smaller:
                made |= self._run(gate.graph, given | made, watch)
            if gate:  # the decoder's positions depend on the kept tokens, so the host waits for them here
                index = made["vision_index"].numpy().copy()
            tokens = self._copy(self._run("projector", made, watch)["vision_tokens"])
            planes = tuple(self._copy(made[f"deepstack.{i}"]) for i in range(self.manifest.dimensions.planes))
        every, index = (layout.of_samples(x) for x in (own, index))
        return EncodedImages(tokens, planes, index, (gate_receipt(gate, every, index, layout),) if gate else ())

    def cache(self, batch: int, capacity: int, schedule: str) -> KVCache:
        """Return an empty cache for `capacity` rows of prompts and answers; segments after a gate get fewer rows."""
        if self.backend.fixed_shapes:
            capacity = rounded(capacity, self.backend.most_rows)
        gone = dropped(self.manifest, schedule)
        rows = [capacity - missing for missing in gone]
        shift = gone if self.manifest.schedules[schedule].positions == "compact" else [0] * len(gone)
        wanted = (batch, tuple(n + self.backend.masked_past for n in rows), tuple(shift))
        with self._lock:
            spare, self._spare = self._spare, None
            if spare is not None and (spare.batch, spare.capacity, spare.shift) == wanted:
                spare.clear()
                return spare
            del spare  # frees its memory for the new cache
            ahead = self.manifest.layout.next_position - self.manifest.layout.rows
            return KVCache(self.backend, self.manifest.segments, rows, batch, shift, ahead)

    def give_back(self, cache: KVCache) -> None:
        """Release `cache`: the next conversation may reuse it and the step recorded for it."""
        if self.backend.fixed_shapes:
            with self._lock:
                self._spare = cache

    def prefill(self, rows: TokenBatch, images: EncodedImages, schedule: str, cache: KVCache, watch: Stopwatch) -> Walk:
        """Run the prefill of the first question, with its vision tokens and gates."""
        layout, ref = self.manifest.layout, self.manifest.schedules[schedule]
        index = np.repeat(images.vision_index, cache.batch // len(images.vision_index), axis=0)
        rows = rows.without(layout, index, ref.positions == "compact")
        encoder = next((gate for gate in ref.gates if gate.kind in ENCODER_GATES), None)
        spans = layout.pruned(encoder.of_views) if encoder else layout.spans
        gates = {gate.layer: gate for gate in ref.gates if gate is not encoder}
        with self._lock, self.backend.clock(watch, "prefill"):
            hidden = self._embed(rows, watch)
            planes = self._planes(hidden.shape)
            images.write(hidden, planes.values(), spans)
            walk = self._decode(hidden, planes, rows, gates, index, [0] * len(cache.shift), cache, watch)
        return replace(walk, gates=(*images.gates, *walk.gates), kept=(*([index] if images.gates else []), *walk.kept))

    def extend(self, rows: TokenBatch, cache: KVCache, watch: Stopwatch) -> Walk:
        """Run the prefill of a follow-up question; every segment reads all its cached rows."""
        with self._lock, self.backend.clock(watch, "prefill"):
            return self._extend(rows, cache, watch)

    def step(self, rows: TokenBatch, cache: KVCache) -> NDArray[np.float32]:
        """Run a decode step: return logits [B,V] after one generated token of each sample."""
        with self._lock:
            if not self.backend.fixed_shapes:
                return self._extend(rows, cache, Stopwatch()).logits
            if cache not in self._steps:
                self._steps[cache] = RecordedStep(self.backend, self.manifest, cache)
            return self._steps[cache].run(rows, cache)

    def _extend(self, rows: TokenBatch, cache: KVCache, watch: Stopwatch) -> Walk:
        nothing, hidden = np.zeros((cache.batch, 0), np.int64), self._embed(rows, watch)
        return self._decode(hidden, self._planes(hidden.shape), rows, {}, nothing, cache.shift, cache, watch)

    def _embed(self, rows: TokenBatch, watch: Stopwatch) -> Buffer:
        return self._run("embed", {"input_ids": self._upload("input_ids", rows.input_ids)}, watch)["hidden_states"]

    def _copy(self, buffer: Buffer) -> Buffer:
        """Return a copy that the next run does not overwrite."""
        copy = self.backend.allocate(buffer.shape, buffer.dtype)
        copy.write(buffer)
        return copy

    def _planes(self, shape: tuple[int, ...]) -> Buffers:
        """Return DeepStack planes by name, filled with zeros."""
        planes: Buffers = {}
        for i in range(self.manifest.dimensions.planes):
            name, dtype = f"deepstack.{i}", self._graphs["embed"].outputs[0].dtype
            planes[name] = self._reuse("", name, shape, dtype)
            planes[name].write(np.zeros(shape, dtype))
        return planes

    def _decode(
        self,
        hidden: Buffer,
        planes: Buffers,
        rows: TokenBatch,
        gates: Mapping[int, GateRef],
        index: Ints,
        shift: Sequence[int],
        cache: KVCache,
        watch: Stopwatch,
    ) -> Walk:
        """Run all segments and the gates between them, and commit the new rows to the cache.

        The kept indices are read and checked after the last segment, so that no graph waits for the host.

        index  [B,N] original indices of the vision tokens in the rows
        shift  for each segment, the number to subtract from the positions
        """
        every, moved, turned = index, 0, False
        named = self._inputs(hidden, planes, rows, index)
        mask = rows.attention_mask
        given: Buffers = {}
        masks: list[Ints] = []
        passed: list[tuple[GateRef, Buffer]] = []
        for i, segment in enumerate(self.manifest.segments):
            if gate := gates.get(_start(segment)):
                if gate.kind == "route":  # it chooses among all rows, so all are its input
                    named.setdefault("full_states", named["hidden_states"])
                named |= self._run(gate.graph, named | given, watch)
                passed.append((gate, named["vision_index"]))
                gone = every.shape[1] - gate.keep
                mask = rows.attention_mask[:, gone:]  # padding is on the right, and image rows are never padding
                named["last_index"] = self._upload("last_index", rows.last_index - gone)
                turned = False
            if shift[i] != moved:
                moved = shift[i]
                named["position_ids"] = self._upload("position_ids", self._positions(rows) - moved)
                turned = False
            if not turned and reads_rotary(segment):
                named |= self._run("rotary", named, watch)
                turned = True
            past, slots = self._cached(segment, cache, mask.shape[1])
            whole_mask = self._upload("whole_mask", np.concatenate([cache.mask(i), mask], axis=1))
            given = self._run(segment.name, named | past | {"attention_mask": whole_mask}, watch, slots)
            named["hidden_states"] = given.get("hidden_states", named["hidden_states"])
            masks.append(mask)
        logits = given["logits"].numpy().astype(np.float32, copy=True)
        receipts: list[GateReceipt] = []
        kept: list[Ints] = []
        for gate, chosen in passed:
            before = every if gate.kind == "route" or not kept else kept[-1]
            kept.append(chosen.numpy().copy())
            receipts.append(gate_receipt(gate, before, kept[-1], self.manifest.layout))
        cache.advance(masks, rows.lengths)
        return Walk(logits, tuple(m.shape[1] for m in masks), tuple(receipts), tuple(kept))

    def _positions(self, rows: TokenBatch) -> Ints:
        """Return position ids in the shape of the graphs; with M-RoPE, text has the same position on each axis."""
        axes, positions = self.manifest.layout.axes, rows.position_ids
        return positions if axes == 1 or positions.ndim == 3 else np.tile(positions, (axes, 1, 1))

    def _inputs(self, hidden: Buffer, planes: Buffers, rows: TokenBatch, index: Ints) -> Buffers:
        """Return the input tensors of the chain by name; every routing gate reads the full rows."""
        question = np.array([self.manifest.layout.next_position], np.int64)
        named: Buffers = planes | {
            "hidden_states": hidden,
            "question_position": self._upload("question_position", question),
            "position_ids": self._upload("position_ids", self._positions(rows)),
            "attention_mask": self._upload("attention_mask", rows.attention_mask),
            "last_index": self._upload("last_index", rows.last_index),
            "vision_index": self._upload("vision_index", index),
        }
        return named | {f"full_{name}": named[name] for name in ("position_ids", "attention_mask", *planes)}

    def _cached(self, segment: GraphSpec, cache: KVCache, rows: int) -> tuple[Buffers, Buffers]:
        """Return the cached keys and values of a segment, and the slots of its new ones, by tensor name."""
        past, slots = {}, {}
        for layer in range(*(segment.layers or (0, 0))):
            past[f"past_key.{layer}"], past[f"past_value.{layer}"] = cache.past(layer)
            slots[f"new_key.{layer}"], slots[f"new_value.{layer}"] = cache.slot(layer, rows)
        return past, slots

    def _run(self, name: str, named: Mapping[str, Buffer], watch: Stopwatch, places: Buffers | None = None) -> Buffers:
        """Run one graph on the buffers with its input names; outputs go to `places`, or to scratch buffers."""
        graph = self._graphs[name]
        inputs = {spec.name: named[spec.name] for spec in graph.inputs}
        try:
            symbols = bind(graph.inputs, {spec.name: inputs[spec.name].shape for spec in graph.inputs})
            shapes = resolve_shapes(graph.outputs, symbols)
        except ValueError as problem:
            raise InputError(f"graph '{name}' does not support these inputs: {problem}") from None
        outputs: Buffers = {}
        for spec in graph.outputs:
            if places is not None and spec.name in places:
                outputs[spec.name] = places[spec.name]
            else:
                outputs[spec.name] = self._reuse(name, spec.name, shapes[spec.name], spec.dtype)
        with self.backend.clock(watch, name):
            self.backend.run(name, inputs, outputs)
        return {spec.flows_to: outputs[spec.name] for spec in graph.outputs}

    def _reuse(self, graph: str, tensor: str, shape: tuple[int, ...], dtype: str) -> Buffer:
        buffer = self._scratch.get((graph, tensor))
        if buffer is None or buffer.shape != shape or buffer.dtype != np.dtype(dtype):
            self._scratch.pop((graph, tensor), None)
            buffer = self._scratch[graph, tensor] = self.backend.allocate(shape, dtype)
        return buffer

    def _upload(self, name: str, array: Array) -> Buffer:
        """Copy `array` to a buffer that the next upload of this name and shape overwrites."""
        buffer = self._reuse("", name, array.shape, array.dtype.name)
        buffer.write(array)
        return buffer


def _start(segment: GraphSpec) -> int:
    return segment.layers[0] if segment.layers else -1
