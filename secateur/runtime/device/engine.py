# SPDX-License-Identifier: Apache-2.0
"""Plans of a bundle, engines made from them, and their execution contexts; for every library of `library`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from secateur.bundle.manifest import GraphSpec, TensorSpec
from secateur.bundle.reader import Bundle
from secateur.bundle.regular_file import open_regular
from secateur.bundle.strict_json import read_json
from secateur.engines.builder import one_line
from secateur.engines.device import Recorder, profile_difference, recorder
from secateur.engines.library import TensorRT
from secateur.engines.manifest import ENGINES, ENGINES_FILE, EnginePlan, Engines, Profile, plan_key
from secateur.engines.platforms import Platform
from secateur.engines.runtime_cache import RuntimeCache
from secateur.errors import BadEngine, InputError, SecateurError
from secateur.runtime.device.memory import Block
from secateur.runtime.device.stream import DeviceBuffer, Stream

Shape = tuple[int, ...]
TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "BOOL": "bool",
    "UINT8": "uint8",
}


class Plans:
    """Contents of BUNDLE/engines/<platform>/engines.json, and the plans beside it.

    Of several folders that fit, plans of this export come first, then those for the fewest compute capabilities. Times
    of files are not used, since a copy of a bundle has others.

    Raises:
        BadEngine: there is none for this platform, or it is damaged.
    """

    def __init__(self, bundle: Bundle, here: Platform) -> None:
        self._manifest, self._root, self.mend = bundle.manifest, bundle.root, here.mend(bundle.root)
        files = sorted((bundle.root / ENGINES).glob(f"*/{ENGINES_FILE}"))
        fitting: list[tuple[Engines, Path]] = []
        damaged, others = list[str](), list[str]()
        for file in files:
            if not fnmatchcase(file.parent.name, here.folders):
                continue
            try:
                engines = read_json(Engines, file, BadEngine)
            except BadEngine as damage:
                damaged.append(str(damage))
                continue
            if difference := engines.platform.differs(here):
                others.append(f"the engines in {file.parent} were built for {difference}")
            else:
                fitting.append((engines, file.parent))
        if not fitting:
            there = (
                f"only for {', '.join(file.parent.name for file in files)}" if files else "nor for any other platform"
            )
            problem = [*damaged, *others, f"{bundle.root} has no engines for {here.folder}, {there}"][0]
            raise BadEngine(f"{problem}; {self.mend}")
        self.engines, self.folder = min(
            fitting, key=lambda found: (self._outdated(found[0]), len(found[0].platform.compute_capabilities))
        )
        self.mend = here.mend(bundle.root, self.engines.options)

    def _outdated(self, engines: Engines) -> bool:
        graphs = {graph.name: graph for graph in self._manifest.graphs}
        return any(
            plan.graph not in graphs or self._key(graphs[plan.graph], plan, engines) != plan.source
            for plan in engines.plans
        )

    def _key(self, graph: GraphSpec, plan: EnginePlan, engines: Engines) -> str:
        return plan_key(self._manifest, self._root, graph, plan.profiles, engines.flags)

    def read(self, graph: GraphSpec) -> tuple[EnginePlan, mmap]:
        """Return the plan of `graph`, and its memory-mapped file, which may have gigabytes.

        Raises:
            BadEngine: the plan is missing, damaged, or from another export of the bundle.
        """
        try:
            plan = self.engines.plan(graph.name)
        except BadEngine as problem:
            raise BadEngine(f"{problem}; {self.mend}") from None
        path = self.folder / plan.file
        if plan.source != self._key(graph, plan, self.engines):
            raise BadEngine(f"{path} was built from another export of this bundle; {self.mend}")
        try:
            with open_regular(path) as file:
                blob = mmap(file.fileno(), 0, access=ACCESS_READ)
        except OSError as problem:
            raise BadEngine(f"{path} cannot be read ({problem.strerror}); {self.mend}") from None
        except ValueError:
            raise BadEngine(f"{path} is empty; {self.mend}") from None
        if hashlib.sha256(blob).hexdigest() != plan.sha256:
            raise BadEngine(f"{path} is damaged or truncated: its sha256 is not that of {ENGINES_FILE}; {self.mend}")
        return plan, blob


class Driver:
    """A library on a stream: what all engines of a backend share.

    cache    kernels that the library compiled on this device
    errors   the library's messages about its runtime, engines and contexts
    """

    def __init__(self, library: TensorRT, stream: Stream, cache: RuntimeCache) -> None:
        self.library, self.stream, self.cache = library, stream, cache
        self.errors = recorder(library.trt)
        self.runtime: Any = library.trt.Runtime(library.trt.Logger(library.trt.Logger.INTERNAL_ERROR))
        self.runtime.error_recorder = self.errors

    def close(self) -> None:
        """Free the runtime and the cache, after the engines."""
        self.runtime = None
        self.cache.close()


class Context:
    """An execution context of one profile, and the shapes and addresses bound to it."""

    def __init__(
        self, driver: Driver, engine: Any, index: int, profile: Profile, weights: Mapping[str, DeviceBuffer]
    ) -> None:
        self.profile, self._stream, self._errors, self._library = profile, driver.stream, driver.errors, driver.library
        title = driver.library.title
        self._context = driver.library.create_context(engine, profile.name, driver.cache)
        if self._context is None:
            raise SecateurError(
                f"{title} cannot create a context for the profile '{profile.name}': {_messages(driver.errors)}"
            )
        self._context.nvtx_verbosity = (
            driver.library.trt.ProfilingVerbosity.NONE
        )  # plans have detailed layer names, and NVTX marks take time
        try:
            self._context.set_optimization_profile_async(index, driver.stream.handle)
        except RuntimeError:  # the recorder has the message, not the exception
            raise SecateurError(f"{title} refuses the profile '{profile.name}': {_messages(driver.errors)}") from None
        for name, buffer in weights.items():
            if not self._context.set_tensor_address(name, buffer.address):
                raise SecateurError(f"{title} refuses the weight '{name}': {_messages(driver.errors)}")
        self._recordable = True
        self._memory: Block | None = None
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self.aligned: dict[str, DeviceBuffer] = {}

    def refuses(self, shapes: Mapping[str, Shape]) -> str:
        """Return the first input whose shape is outside of the profile; "" if there is none."""
        for name, bounds in self.profile.ranges.items():
            within = zip(bounds.min, shapes[name], bounds.max, strict=True)
            if not all(low <= size <= high for low, size, high in within):
                return name
        return ""

    def changes(self, buffers: Mapping[str, DeviceBuffer]) -> bool:
        """Return whether a buffer has another shape or address than the bound one."""
        return any(
            self._addresses.get(name) != buffer.address or self._shapes.get(name) != buffer.shape
            for name, buffer in buffers.items()
        )

    def run(self, inputs: Mapping[str, DeviceBuffer], outputs: Mapping[str, DeviceBuffer], memory: Block) -> None:
        """Enqueue a run of the engine; `memory` is for its activations.

        Raises:
            SecateurError: TensorRT refuses the run; has its message. Or a CUDA graph cannot record it.
        """
        if self._stream.capturing and not self._recordable:
            raise SecateurError(f"{self._library.title} cannot run this engine inside a CUDA graph")
        if memory is not self._memory:
            self._context.set_device_memory(memory.address, memory.size)
            self._memory = memory
        done = []
        for name, buffer in inputs.items():
            if self._shapes.get(name) != buffer.shape:
                done.append(self._context.set_input_shape(name, buffer.shape))
        for name, buffer in {**inputs, **outputs}.items():
            if self._addresses.get(name) != buffer.address:
                done.append(self._context.set_tensor_address(name, buffer.address))
            self._shapes[name], self._addresses[name] = buffer.shape, buffer.address
        self._stream.busy = True
        if not all(done) or not self._context.execute_async_v3(self._stream.handle):
            self._shapes.clear()
            self._addresses.clear()
            raise SecateurError(_messages(self._errors))
        if not self._stream.capturing:
            self._recordable = self._library.recordable(self._context, self._stream.handle)


class Engine:
    """A plan on the device.

    weights  buffers of the weights that are inputs, shared with other engines
    memory   bytes that a run needs for activations

    Raises:
        BadEngine: TensorRT cannot read the plan, or the plan does not match the graph.
    """

    def __init__(
        self,
        driver: Driver,
        graph: GraphSpec,
        plan: EnginePlan,
        blob: mmap,
        mend: str,
        weights: Mapping[str, DeviceBuffer],
    ) -> None:
        self.graph, self._mend, self._weights = graph, mend, weights
        self._engine = driver.runtime.deserialize_cuda_engine(blob)
        if self._engine is None:
            raise BadEngine(f"{plan.file} cannot be loaded: {_messages(driver.errors)}; {mend}")
        self._compare(driver.library.trt, plan)
        self.memory = int(self._engine.device_memory_size_v2)
        contexts = [
            Context(driver, self._engine, index, profile, weights) for index, profile in enumerate(plan.profiles)
        ]
        self._contexts = sorted(contexts, key=_room)

    def context(self, shapes: Mapping[str, Shape]) -> Context:
        """Return the context with the smallest profile that supports these input shapes.

        Raises:
            InputError: no profile supports them; names the tensor, its shape and the bounds.
        """
        for context in self._contexts:
            if not context.refuses(shapes):
                return context
        widest = self._contexts[-1]
        name = widest.refuses(shapes)
        bounds = widest.profile.ranges[name]
        raise InputError(
            f"graph '{self.graph.name}': {name} is {list(shapes[name])}, its engine takes {list(bounds.min)} to "
            f"{list(bounds.max)}; build the engines with a larger --max-batch, --max-text or --max-new-tokens"
        )

    def _compare(self, trt: Any, plan: EnginePlan) -> None:
        """Check tensors and profiles of the engine against the manifest."""
        engine, graph = self._engine, self.graph
        found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        inputs = {name for name in found if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
        for specs, names in ((graph.all_inputs, inputs), (graph.outputs, found - inputs)):
            if strange := {spec.name for spec in specs} ^ names:
                raise BadEngine(f"{plan.file} and the manifest differ in the tensor '{min(strange)}'; {self._mend}")
        for spec in (*graph.all_inputs, *graph.outputs):
            dtype, shape = engine.get_tensor_dtype(spec.name), tuple(engine.get_tensor_shape(spec.name))
            if TYPES.get(dtype.name) != spec.dtype or not _fits(spec, shape):
                raise BadEngine(
                    f"{plan.file}: '{spec.name}' is {dtype.name} {list(shape)}, the manifest says {spec.dtype} "
                    f"{list(spec.shape)}; {self._mend}"
                )
        if engine.num_optimization_profiles != len(plan.profiles):
            raise BadEngine(
                f"{plan.file} has {engine.num_optimization_profiles} profiles, not {len(plan.profiles)}; {self._mend}"
            )
        if difference := profile_difference(engine, plan.profiles):
            raise BadEngine(f"{plan.file} has {difference}")


def _fits(spec: TensorSpec, shape: Shape) -> bool:
    """Return whether a shape matches its spec; -1 is a dynamic size, allowed also for a fixed size of the spec."""
    return len(shape) == len(spec.shape) and all(
        a == b or not isinstance(a, int) or b == -1 for a, b in zip(spec.shape, shape, strict=True)
    )


def _room(context: Context) -> int:
    return sum(math.prod(bounds.max) for bounds in context.profile.ranges.values())


def _messages(errors: Recorder) -> str:
    """Return and clear TensorRT's messages."""
    text = one_line(text for _, text in errors.texts) or "TensorRT gave no reason"
    errors.clear()
    return text
