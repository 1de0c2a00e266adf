# SPDX-License-Identifier: Apache-2.0
"""An execution context: shapes, addresses, activation memory; checked when work is enqueued, used when it is done."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from simulated import counters, device
from simulated.device import Work
from simulated.faults import Fault
from simulated.memory import ALIGNMENT, Range

from tensorrt import _plan
from tensorrt._enumerations import DataType, ErrorCodeTRT, ProfilingVerbosity, TensorIOMode
from tensorrt._logging import Reporter
from tensorrt._values import Dims, dims, integer

if TYPE_CHECKING:
    from tensorrt._engine import ICudaEngine

NUMPY: dict[DataType, np.dtype[Any]] = {
    DataType.FLOAT: np.dtype("float32"),
    DataType.HALF: np.dtype("float16"),
    DataType.INT8: np.dtype("int8"),
    DataType.INT32: np.dtype("int32"),
    DataType.INT64: np.dtype("int64"),
    DataType.UINT8: np.dtype("uint8"),
    DataType.BOOL: np.dtype("bool"),
}
USED = 0xA5
"""Execution leaves this in every byte of the activation memory."""

Shape = tuple[int, ...]


class IExecutionContext:
    __slots__ = (
        "_addresses",
        "_engine",
        "_own",
        "_profile",
        "_reporter",
        "_scratch",
        "_settled",
        "_shapes",
        "_verbosity",
    )

    def __init__(self, engine: ICudaEngine, reporter: Reporter, memory: int) -> None:
        self._engine, self._reporter = engine, reporter
        self._own = memory
        self._scratch: Range | None = None
        if memory:
            self._scratch = device.memory.need(memory, engine.device_memory_size_v2, "device", "activation memory")
        self._profile = 0
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._settled: object = None
        self._verbosity = engine.profiling_verbosity

    def __del__(self) -> None:
        if getattr(self, "_own", 0) and self._scratch is not None and self._scratch.block.live:
            device.memory.free(self._scratch.block)

    @property
    def engine(self) -> ICudaEngine:
        return self._engine

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    @property
    def nvtx_verbosity(self) -> ProfilingVerbosity:
        """What a profiler is told of every layer, while it runs."""
        return self._verbosity

    @nvtx_verbosity.setter
    def nvtx_verbosity(self, verbosity: ProfilingVerbosity) -> None:
        if not isinstance(verbosity, ProfilingVerbosity):
            raise TypeError("incompatible function arguments: nvtx_verbosity")
        self._verbosity = verbosity

    def set_device_memory(self, memory: int, size: int) -> None:
        """Activation memory that other contexts may use too, as long as only one of them works."""
        integer(memory, "memory")
        if integer(size, "size") < self._engine.device_memory_size_v2 or memory % ALIGNMENT or memory == 0:
            self._error(f"set_device_memory: {size} bytes at {memory:#x} are too small or not aligned")
            return
        self._scratch = device.memory.need(memory, size, "device", "activation memory")

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """Forgets the shapes of all inputs; never False.

        Raises:
            RuntimeError: the profile cannot be used; the reason is in the log.
        """
        device.stream(integer(stream_handle, "stream_handle"))
        if not 0 <= integer(profile_index, "profile_index") < self._engine.num_optimization_profiles:
            self._error(f"set_optimization_profile_async: there is no profile {profile_index}")
            raise RuntimeError("Error in set optimization profile async.")
        if profile_index != self._profile:
            self._profile = profile_index
            self._shapes.clear()
        return True

    def set_input_shape(self, name: str, shape: Any) -> bool:
        """False if the shape does not fit the active profile."""
        tensor, sizes = self._engine._tensor(name), dims(shape)
        if tensor.mode != int(TensorIOMode.INPUT):
            return self._error(f"set_input_shape: {name} is no input")
        least, _, most = (tuple(shape) for shape in self._engine.get_tensor_profile_shape(name, self._profile))
        if len(sizes) != len(least) or not all(a <= b <= c for a, b, c in zip(least, sizes, most, strict=True)):
            message = f"Supplied dimension for {name} is {sizes}, profile {self._profile} takes {least} to {most}"
            return self._error(f"IExecutionContext::setInputShape: {message}")
        self._shapes[name] = sizes
        return True

    def get_tensor_shape(self, name: str) -> Dims:
        """-1 where a size is not known yet."""
        tensor = self._engine._tensor(name)
        if tensor.mode == int(TensorIOMode.INPUT):
            return Dims(self._shapes.get(name, tensor.shape))
        return Dims(resolve(tensor, self._symbols() or {}))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """False for an address that is not a multiple of 256 bytes."""
        self._engine._tensor(name)
        if integer(memory, "memory") % ALIGNMENT:
            return self._error(f"setTensorAddress: {name} is at {memory:#x}, which is not aligned to {ALIGNMENT} bytes")
        self._addresses[name] = memory
        return True

    def get_tensor_address(self, name: str) -> int:
        self._engine._tensor(name)
        return self._addresses.get(name, 0)

    def infer_shapes(self) -> list[str]:
        """Names of the inputs whose shapes are missing.

        Raises:
            RuntimeError: two inputs disagree on a symbol.
        """
        missing = [t.name for t in self._inputs() if -1 in t.shape and t.name not in self._shapes]
        if not missing and self._symbols() is None:
            raise RuntimeError("Dimensions of the same name must be equal")
        return missing

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Note the work on the stream; False if something is not set, or not as a recording needs it."""
        stream = device.stream(integer(stream_handle, "stream_handle"))
        missing = [t.name for t in self._inputs() if -1 in t.shape and t.name not in self._shapes]
        missing += [t.name for t in self._engine._plan.tensors if not self._addresses.get(t.name)]
        symbols = self._symbols()
        if missing or symbols is None:
            return self._error(f"enqueueV3: shape or address of {', '.join(missing) or 'inputs'} is not right")
        if self._scratch is None:
            return self._error("enqueueV3: no device memory was set for a context with user-managed memory")
        shapes = {t.name: self._shapes.get(t.name) or resolve(t, symbols) for t in self._engine._plan.tensors}
        settled = (self._profile, tuple(shapes.items()))
        self._compile(settled)
        if stream.capture and not self._capturable(settled):
            stream.capture.valid = False
            return self._error("enqueueV3: the first run after a change of shape cannot be captured")
        self._settled = settled
        device.submit(stream, self._work(shapes))
        return True

    def _compile(self, settled: object) -> None:
        """Compile kernels for these shapes; TensorRT has all of them in the plan."""

    def _capturable(self, settled: object) -> bool:
        return self._settled == settled

    def _work(self, shapes: dict[str, Shape]) -> Work:
        """The run with what is set now; later changes do not matter.

        Raises:
            Fault: a tensor lies outside its allocation, or on another one that is written.
        """
        engine, scratch = self._engine, self._scratch
        assert scratch is not None
        ranges: dict[str, Range] = {}
        for tensor in engine._plan.tensors:
            known = [size for size in shapes[tensor.name] if size >= 0]
            size = math.prod(known) * NUMPY[DataType(tensor.dtype)].itemsize
            ranges[tensor.name] = device.memory.need(self._addresses[tensor.name], size, "device", tensor.name)
        inputs = {t.name: (ranges[t.name], NUMPY[DataType(t.dtype)], shapes[t.name]) for t in self._inputs()}
        outputs = {name: part for name, part in ranges.items() if name not in inputs}
        for name, part in outputs.items():
            others = [(other, used) for other, used in ranges.items() if other != name]
            for other, used in [*others, ("the activation memory", scratch)]:
                if part.overlaps(used):
                    raise Fault(f"{engine.name}: output {name} overlaps {other}")
        for name, (part, _, _) in inputs.items():
            if part.overlaps(scratch):
                raise Fault(f"{engine.name}: input {name} overlaps the activation memory")

        def do() -> None:
            counters.executions += 1
            scratch.bytes[:] = USED
            given = {name: part.array(dtype, shape).copy() for name, (part, dtype, shape) in inputs.items()}
            for name, array in engine._run(given).items():
                if array.shape != shapes[name] and -1 not in shapes[name]:
                    raise Fault(f"{engine.name}: output {name} is {array.shape}, not {shapes[name]}")
                target = device.memory.need(
                    ranges[name].block.address + ranges[name].start, array.nbytes, "device", name
                )
                target.array(array.dtype, array.shape)[...] = array

        return Work(engine.name, do, tuple(ranges.values()), scratch)

    def _inputs(self) -> list[_plan.Tensor]:
        return [tensor for tensor in self._engine._plan.tensors if tensor.mode == int(TensorIOMode.INPUT)]

    def _symbols(self) -> dict[str, int] | None:
        """Sizes of the symbols of the inputs that are set; None if two inputs disagree."""
        symbols: dict[str, int] = {}
        for tensor in self._inputs():
            sizes = self._shapes.get(tensor.name, ())
            for symbol, size in zip(tensor.symbols, sizes, strict=False):
                if symbol and symbols.setdefault(symbol, size) != size:
                    return None
        return symbols

    def _error(self, message: str) -> bool:
        self._reporter.error(ErrorCodeTRT.INVALID_ARGUMENT, message)
        return False


def resolve(tensor: _plan.Tensor, symbols: dict[str, int]) -> Shape:
    """Sizes of a tensor; -1 where none is known."""
    sizes = zip(tensor.shape, tensor.symbols, strict=True)
    return tuple(symbols.get(symbol, -1) if size == -1 else size for size, symbol in sizes)
