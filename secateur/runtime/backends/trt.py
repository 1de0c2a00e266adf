# SPDX-License-Identifier: Apache-2.0
"""TensorRT engines on one CUDA stream: all buffers stay on the device, and nothing waits until an answer is read."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np

from secateur.bundle.graph_plan import largest
from secateur.bundle.manifest import GraphSpec
from secateur.bundle.reader import Bundle
from secateur.engines.device import this_device, this_platform
from secateur.engines.library import TensorRT
from secateur.engines.runtime_cache import RuntimeCache
from secateur.engines.version import check_target
from secateur.errors import SecateurError
from secateur.runtime.backends import base
from secateur.runtime.backends.base import check_buffers, check_device
from secateur.runtime.device.cudart import describe
from secateur.runtime.device.engine import Context, Driver, Engine, Plans
from secateur.runtime.device.memory import Block
from secateur.runtime.device.step_graph import StepGraph
from secateur.runtime.device.stream import DeviceBuffer, Stream
from secateur.runtime.device.weights import ALIGNMENT, DeviceWeights
from secateur.runtime.receipt import Stopwatch


class Backend(base.Backend):
    """Runs one engine per graph, from the plans in BUNDLE/engines that were built for this device.

    The engines never run at the same time, so they share one block of memory for activations.

    threads  unused
    device   None or "cuda"

    Raises:
        BadBundle: the bundle was not exported for TensorRT.
        BadEngine: there are no plans for this device and version of the library.
        BackendMissing: the library, cuda-python or the GPU is missing.
    """

    fixed_shapes = True
    library: ClassVar[type[TensorRT]] = TensorRT

    def __init__(self, bundle: Bundle, threads: int | None = None, device: str | None = None) -> None:
        check_device(self.library.name, device, ("cuda",))
        check_target(bundle.manifest)
        library, here = self.library(), this_device()
        platform = this_platform(library, here)
        library.check(bundle.manifest, platform.compute_capabilities)
        self._plans = Plans(bundle, platform)
        engines = self._plans.engines
        self.masked_past = engines.masked_past
        self.most_rows = engines.limits.capacity(largest(bundle.manifest))
        self.most_batch, self.most_text = engines.limits.batch, engines.limits.text
        self._stream = Stream()
        self._step_graph = StepGraph(self._stream)
        self._driver = Driver(library, self._stream, RuntimeCache(self._plans.folder / f"{here.name}.kernels"))
        self._bundle, self._weights = bundle, DeviceWeights(self._stream)
        self._engines: dict[str, Engine] = {}
        self._activations: Block | None = None

    def load(self, graph: GraphSpec) -> None:
        if graph.name not in self._engines:
            plan, blob = self._plans.read(graph)
            weights = {w.name: self._weights.buffer(self._bundle.path(w.file), w) for w in graph.weights}
            self._engines[graph.name] = Engine(self._driver, graph, plan, blob, self._plans.mend, weights)

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any] | type | str) -> DeviceBuffer:
        return DeviceBuffer.zeros(self._stream, shape, dtype)

    def run(self, graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        engine = self._engines.get(graph)
        if engine is None:
            raise SecateurError(f"graph '{graph}' is not loaded, or the backend was closed")
        check_buffers(engine.graph, inputs, outputs, DeviceBuffer)
        context = engine.context({name: buffer.shape for name, buffer in inputs.items()})
        given = {name: _aligned(self._stream, context, name, buffer) for name, buffer in inputs.items()}
        taken = {name: _aligned(self._stream, context, name, buffer) for name, buffer in outputs.items()}
        memory = self._memory()
        blocks = {memory, *(b.block for side in (inputs, outputs, given, taken) for b in side.values())}
        self._step_graph.use(context, context.changes({**given, **taken}), blocks)
        for name, buffer in given.items():
            if buffer is not inputs[name]:
                buffer.write(inputs[name])
        try:
            context.run(given, taken, memory)
        except SecateurError as problem:
            raise SecateurError(f"graph '{graph}' failed in {self._driver.library.title}: {problem}") from None
        for name, buffer in taken.items():
            if buffer is not outputs[name]:
                outputs[name].write(buffer)

    def repeat(self, key: Hashable, step: Callable[[], None]) -> None:
        """Call `step`; later calls replay it as one CUDA graph, see `StepGraph`."""
        self._step_graph.repeat(key, step)

    def clock(self, watch: Stopwatch, stage: str) -> AbstractContextManager[None]:
        """Measure the time on the device, added at the next synchronization; not for work in a CUDA graph."""
        return self._stream.clock(watch, stage)

    def describe(self) -> dict[str, str]:
        library = self._driver.library
        return {**describe(self._stream.cudart), library.title: library.version}

    def close(self) -> None:
        self._step_graph.clear()
        self._stream.synchronize()  # a context must not be freed while it runs
        self._driver.cache.save()
        self._engines.clear()
        self._driver.close()
        self._activations = None
        self._stream.close()

    def _memory(self) -> Block:
        """Return a block of memory for the activations of any loaded engine."""
        need = max(engine.memory for engine in self._engines.values())
        if self._activations is None or self._activations.size < need:
            self._step_graph.clear()
            self._activations = self._stream.block(need)
        return self._activations


def _aligned(stream: Stream, context: Context, name: str, buffer: DeviceBuffer) -> DeviceBuffer:
    """Return the buffer, or a buffer of the context if its address is not aligned (a cache row may be unaligned)."""
    if buffer.address % ALIGNMENT == 0:
        return buffer
    own = context.aligned.get(name)
    if own is None or own.shape != buffer.shape:
        own = context.aligned[name] = DeviceBuffer.zeros(stream, buffer.shape, buffer.dtype)
    return own
