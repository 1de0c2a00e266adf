# SPDX-License-Identifier: Apache-2.0
"""Network and config in, plan out: what a real builder refuses is refused, and then the model is packed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

from simulated import settings
from simulated.faults import Fault

from tensorrt import _plan
from tensorrt._config import IBuilderConfig, IOptimizationProfile
from tensorrt._enumerations import (
    ErrorCodeTRT,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    TensorIOMode,
)
from tensorrt._logging import IErrorRecorder, ILogger, Reporter
from tensorrt._network import INetworkDefinition, ITensor
from tensorrt._values import IHostMemory, integer

BYTES = {"FLOAT": 4, "INT32": 4, "INT64": 8, "HALF": 2, "BF16": 2}


class Builder:
    __slots__ = ("_reporter",)
    _typed = 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    _needs_device = True

    def __init__(self, logger: ILogger) -> None:
        if self._needs_device and settings.devices() == 0:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._reporter = Reporter(logger)

    @property
    def error_recorder(self) -> IErrorRecorder | None:
        return self._reporter.recorder

    @error_recorder.setter
    def error_recorder(self, recorder: IErrorRecorder) -> None:
        if not isinstance(recorder, IErrorRecorder):
            raise TypeError("incompatible function arguments: error_recorder")
        self._reporter.recorder = recorder

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        """Raises Fault if the network would not be strongly typed: then the types of the graph would not hold."""
        if integer(flags, "flags") != self._typed:
            raise Fault(f"the network is not strongly typed: flags {flags}")
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self._reporter)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        """The plan, or None and an error in the log and the recorder."""
        for code, problem in problems(network, config):
            self._reporter.error(code, problem)
            return None
        model = network._model.SerializeToString()
        if config._timing is not None:
            config._timing._entries.add(hashlib.sha256(model).hexdigest())
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        outputs = [network.get_output(i) for i in range(network.num_outputs)]
        version, gpu, sm = config._platform()
        plan = _plan.Plan(
            version=version,
            gpu=gpu,
            sm=sm,
            name=Path(network._path).stem,
            tensors=tuple(described(tensor) for tensor in (*inputs, *outputs)),
            profiles=tuple(admitted(profile) for profile in config._profiles) or ({},),
            memory=tuple(activations(inputs, profile) for profile in config._profiles or [IOptimizationProfile()]),
            verbosity=int(config.profiling_verbosity),
            config=config._told(),
            model=model,
        )
        return IHostMemory(plan.pack())


def described(tensor: ITensor) -> _plan.Tensor:
    mode = TensorIOMode.INPUT if tensor.is_network_input else TensorIOMode.OUTPUT
    return _plan.Tensor(tensor.name, int(mode), int(tensor.dtype), tuple(tensor.shape), tensor._names)


def admitted(profile: IOptimizationProfile) -> dict[str, tuple[tuple[int, ...], ...]]:
    """What a plan takes: the shapes that were asked for, unless the device is one that changes them."""
    least = 1 if settings.clamps_empty() else 0
    return {
        name: (tuple(max(size, least) for size in shapes[0]), *shapes[1:]) for name, shapes in profile._shapes.items()
    }


def activations(inputs: list[ITensor], profile: IOptimizationProfile) -> int:
    """Bytes that running one profile needs: as much as its largest inputs, in multiples of 256."""
    total = 0
    for tensor in inputs:
        shape = profile._shapes[tensor.name][2] if tensor.name in profile._shapes else tuple(tensor.shape)
        total += math.prod(shape) * BYTES.get(tensor.dtype.name, 1)
    return 256 * (1 + -(-total // 256))


def problems(network: INetworkDefinition, config: IBuilderConfig) -> Iterator[tuple[ErrorCodeTRT, str]]:
    """Why it cannot be built; the first one counts."""
    if network.num_outputs == 0:
        yield ErrorCodeTRT.INVALID_STATE, "Network must have at least one output"
    if settings.out_of_memory(network._path):
        yield ErrorCodeTRT.FAILED_ALLOCATION, "OutOfMemory (Requested size was 2147483648 bytes.)"
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    dynamic = [tensor for tensor in inputs if -1 in tuple(tensor.shape)]
    if dynamic and not config._profiles:
        yield (
            ErrorCodeTRT.INVALID_CONFIG,
            "Network has dynamic or shape inputs, but no optimization profile has been defined",
        )
    for number, profile in enumerate(config._profiles):
        for problem in mistakes(inputs, profile):
            yield ErrorCodeTRT.INVALID_CONFIG, f"Optimization profile {number}: {problem}"
        limit = config.get_memory_pool_limit(MemoryPoolType.WORKSPACE)
        if (needed := activations(inputs, profile)) > limit:
            yield ErrorCodeTRT.INTERNAL_ERROR, f"Could not find any implementation: {needed} bytes, workspace {limit}"


def mistakes(inputs: list[ITensor], profile: IOptimizationProfile) -> Iterator[str]:
    """What is wrong with one profile."""
    known = {tensor.name: tensor for tensor in inputs}
    sizes: dict[str, tuple[int, ...]] = {}
    for name in profile._shapes.keys() - known.keys():
        yield f"there is no input {name}"
    for tensor in inputs:
        shape = tuple(tensor.shape)
        if tensor.name not in profile._shapes:
            if -1 in shape:
                yield f"min, opt and max of dynamic input {tensor.name} are missing"
            continue
        chosen = profile._shapes[tensor.name]
        if len(chosen[0]) != len(shape):
            yield f"input {tensor.name} has rank {len(shape)}, its shapes have {len(chosen[0])}"
            continue
        for axis, (size, symbol) in enumerate(zip(shape, tensor._names, strict=True)):
            triple = tuple(shapes[axis] for shapes in chosen)
            if size != -1 and triple != (size, size, size):
                yield f"dimension {axis} of {tensor.name} is {size}, not {triple}"
            if symbol and sizes.setdefault(symbol, triple) != triple:
                yield f"dimension {symbol} is {sizes[symbol]} in one input and {triple} in {tensor.name}"
        if settings.refuses_empty() and 0 in chosen[0]:
            yield f"input {tensor.name} may be empty"
