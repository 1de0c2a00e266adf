# SPDX-License-Identifier: Apache-2.0
"""Our segments and gates in benchmarks/gpu.py: run one by one, or recorded as CUDA graphs.

All shapes and addresses are fixed: a decode step attends to the whole cache and masks its empty rows, as the steps that
the runtime records do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.gpu_models import Workload
from secateur.bundle.schedule import FULL, Schedule
from secateur.export.graphs import Graph, build_graphs, move, sized_model
from secateur.export.targets import DTYPES, target

SPARE = 8
"""Rows of the cache beyond the answer, for the steps before a recording."""


class Segments:
    """The graphs of one schedule as torch modules, batch 1, all tensors on the device."""

    def __init__(self, workload: Workload, schedule: Schedule | None, steps: int) -> None:
        """Build the graphs and allocate a cache for the prompt and `steps` tokens."""
        family, device, layout = workload.family, workload.device, workload.family.layout
        self.name, self.schedule = "segments", schedule.name if schedule else FULL
        dtype = next(name for name, kind in DTYPES.items() if kind == family.dtype)
        with torch.device(device):
            bucket = sized_model(family, layout, [schedule] if schedule else [])
            graphs = build_graphs([bucket], target("cuda", dtype))
        move(family, graphs, device)  # what torch.device does not apply to
        self._graphs = {graph.spec.name: graph for graph in graphs}
        self._segments = [graph for graph in graphs if graph.spec.kind == "segment"]
        self._gates = {graph.spec.layers: graph for graph in graphs if graph.spec.kind == "gate"}
        self._spans, self._pixels = layout.spans, workload.pixels
        keep = {gate.layer: gate.keep for gate in schedule.gates} if schedule else {}
        self._rows = list[int]()
        left = layout.vision_tokens
        for segment in self._segments:
            left = keep.get(_layers(segment)[0], left)
            self._rows.append(workload.rows - layout.vision_tokens + left)
        self._allocate(workload, steps)

    def _allocate(self, workload: Workload, steps: int) -> None:
        d, device, layout = workload.family.dimensions, workload.device, workload.family.layout

        def ints(values: object) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        positions = ints(layout.numbered(workload.rows))[:, None]
        text = workload.ids.clone()
        text[text == workload.family.image_token_id] = workload.family.prompt.pad
        self._prompt = {
            "input_ids": text,
            "position_ids": positions if layout.axes > 1 else positions[0],
            "attention_mask": torch.ones_like(workload.ids),
            "vision_index": torch.arange(layout.vision_tokens, device=device)[None],
            "question_position": ints([layout.next_position]),
        }
        self._last = [ints([rows - 1]) for rows in self._rows]
        self._hidden = torch.zeros(1, workload.rows, d.width, dtype=workload.family.dtype, device=device)
        self._cache: dict[str, Tensor] = {}
        for segment, rows in zip(self._segments, self._rows, strict=True):
            shape = rows + steps + SPARE, 1, d.kv_heads, d.head_dim
            for layer in range(*_layers(segment)):
                for part in ("key", "value"):
                    self._cache[f"{part}.{layer}"] = torch.zeros(shape, dtype=self._hidden.dtype, device=device)
        self._none = {name: rows[:0] for name, rows in self._cache.items()}
        self.token = ints([[0]])
        self._position, self._first_row = self._prompt["position_ids"][..., -1:] + 1, ints([0])
        capacities = [rows + steps + SPARE for rows in self._rows]
        self._start = {
            "position": self._position.clone(),
            **{f"slot.{i}": ints([rows]) for i, rows in enumerate(self._rows)},
            **{
                f"mask.{i}": ints([[1] * rows + [0] * (capacity - rows) + [1]])
                for i, (rows, capacity) in enumerate(zip(self._rows, capacities, strict=True))
            },
        }
        self._state = {name: x.clone() for name, x in self._start.items()}

    def first_token(self) -> Tensor:
        """Run everything from the pixels to the first token [1, 1]."""
        self.embed()
        return self.prefill()

    def embed(self) -> None:
        """Encode the image, and fill the rows that enter the decoder."""
        seen = self._run("vision", {"pixel_values": self._pixels})
        tokens = self._run("projector", seen)["vision_tokens"]
        self._hidden.copy_(self._run("embed", self._prompt)["hidden_states"])
        first = 0
        for start, count in self._spans:
            self._hidden[:, start : start + count] = tokens[:, first : first + count]
            first += count

    def prefill(self) -> Tensor:
        """Run the decoder on the prompt, fill the cache, and return the first token [1, 1]."""
        for name, value in self._start.items():
            self._state[name].copy_(value)
        named, given = self._prompt | {"hidden_states": self._hidden}, dict[str, Tensor]()
        for i, segment in enumerate(self._segments):
            first = _layers(segment)[0]
            if gate := self._gates.get((first, first)):
                named |= self._run(gate.spec.name, named | given)
            named |= self._run("rotary", named) | {"last_index": self._last[i]}
            given = self._run(segment.spec.name, named | self._past(segment, self._none))
            named["hidden_states"] = given.get("hidden_states", named["hidden_states"])
            for name, rows in self._new(segment, given):
                self._cache[name][: self._rows[i]] = rows
        self.token.copy_(given["logits"].argmax(-1, keepdim=True))
        return self.token

    def step(self) -> Tensor:
        """Run the last token through the decoder, and return the next one [1, 1]."""
        state = self._state
        named = self._run("embed", {"input_ids": self.token}) | {"position_ids": state["position"]}
        named |= self._run("rotary", named) | {"last_index": self._first_row}
        for i, segment in enumerate(self._segments):
            mask, slot = state[f"mask.{i}"], state[f"slot.{i}"]
            given = self._run(segment.spec.name, named | self._past(segment, self._cache) | {"attention_mask": mask})
            named["hidden_states"] = given.get("hidden_states", named["hidden_states"])
            for name, row in self._new(segment, given):
                self._cache[name].index_copy_(0, slot, row)
            mask.index_fill_(1, slot, 1)
            slot += 1
        state["position"] += 1
        self.token.copy_(given["logits"].argmax(-1, keepdim=True))
        return self.token

    def rows_per_layer(self) -> list[int]:
        """Return the rows of the prompt in each decoder layer."""
        spans = [range(*_layers(segment)) for segment in self._segments]
        return [rows for rows, span in zip(self._rows, spans, strict=True) for _ in span]

    def _run(self, name: str, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run one graph; return its outputs by the name of the next graph's input."""
        graph = self._graphs[name]
        found = graph.module(*(named[x.name] for x in graph.spec.inputs))
        found = found if isinstance(found, tuple) else (found,)
        return {x.flows_to: tensor for x, tensor in zip(graph.spec.outputs, found, strict=True)}

    def _past(self, segment: Graph, cache: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = (x.name for x in segment.spec.inputs if x.name.startswith("past_"))
        return {name: cache[name.removeprefix("past_")] for name in names}

    def _new(self, segment: Graph, given: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
        """Return the name in the cache, and the rows, of each new key and value."""
        specs = [x for x in segment.spec.outputs if x.name.startswith("new_")]
        return [(x.name.removeprefix("new_"), given[x.flows_to]) for x in specs]


class Recorded:
    """The same as CUDA graphs: one from the pixels to the first token, one of the prefill, one of a decode step."""

    def __init__(self, segments: Segments) -> None:
        """Record.

        Raises:
            RuntimeError: something in it cannot be recorded.
        """
        self.name, self.schedule = "segments, CUDA graphs", segments.schedule
        self.rows_per_layer = segments.rows_per_layer
        segments.embed()
        self._pool = torch.cuda.graph_pool_handle()
        self.first_token = self._recorded(segments.first_token)
        self.prefill = self._recorded(segments.prefill)
        self.step = self._recorded(segments.step)

    def _recorded(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Return `work` as one CUDA graph; it keeps what it returns at the same address."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries choose their kernels before the recording
            for _ in range(2):
                work()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            found = work()

        def replay() -> Tensor:
            graph.replay()
            return found

        return replay


def _layers(segment: Graph) -> tuple[int, int]:
    assert segment.spec.layers is not None
    return segment.spec.layers
