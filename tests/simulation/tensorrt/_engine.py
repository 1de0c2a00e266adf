# SPDX-License-Identifier: Apache-2.0
"""Plans become engines, if this version and device made them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from simulated import device
from simulated.faults import Fault, Refused

from tensorrt import _plan
from tensorrt._context import IExecutionContext
from tensorrt._enumerations import (
    DataType,
    ErrorCodeTRT,
    ExecutionContextAllocationStrategy,
    ProfilingVerbosity,
    TensorIOMode,
    TensorLocation,
)
from tensorrt._logging import IErrorRecorder, ILogger, Reporter
from tensorrt._values import Dims, integer, text


class Runtime:
    __slots__ = ("_reporter",)

    def __init__(self, logger: ILogger) -> None:
        self._reporter = Reporter(logger)

    @property
    def error_recorder(self) -> IErrorRecorder | None:
        return self._reporter.recorder

    @error_recorder.setter
    def error_recorder(self, recorder: IErrorRecorder) -> None:
        if not isinstance(recorder, IErrorRecorder):
            raise TypeError("incompatible function arguments: error_recorder")
        self._reporter.recorder = recorder

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        """None, and an error in the log, for what is no plan or one of another version or device."""
        data = bytes(memoryview(serialized_engine))
        try:
            plan = _plan.Plan.unpack(data)
        except ValueError as problem:
            self._reporter.error(ErrorCodeTRT.INTERNAL_ERROR, str(problem))
            return None
        if plan.version != self._version():
            self._reporter.error(
                ErrorCodeTRT.INTERNAL_ERROR,
                "The engine plan file is not compatible with this version of TensorRT, expecting library version "
                f"{self._version()} got {plan.version}, please rebuild.",
            )
            return None
        if not self._runs(plan):
            message = f"The engine plan file is generated on an incompatible device ({plan.gpu}, SM {plan.sm})"
            self._reporter.error(ErrorCodeTRT.INVALID_CONFIG, message)
            return None
        return self._engine(plan)

    def _version(self) -> str:
        return _plan.version()

    def _runs(self, plan: _plan.Plan) -> bool:
        """Whether the plan is for this device."""
        return (plan.gpu, plan.sm) == _plan.device()

    def _engine(self, plan: _plan.Plan) -> ICudaEngine:
        return ICudaEngine(plan, self._reporter.inherit())


class ICudaEngine:
    __slots__ = ("_plan", "_reporter", "_session", "_tensors")

    def __init__(self, plan: _plan.Plan, reporter: Reporter) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # exact, as backend ort
        self._plan, self._reporter = plan, reporter
        self._session = onnxruntime.InferenceSession(plan.model, options, providers=["CPUExecutionProvider"])
        self._tensors = {tensor.name: tensor for tensor in plan.tensors}

    @property
    def name(self) -> str:
        return self._plan.name

    @property
    def num_io_tensors(self) -> int:
        return len(self._plan.tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._plan.profiles)

    @property
    def profiling_verbosity(self) -> ProfilingVerbosity:
        return ProfilingVerbosity(self._plan.verbosity)

    @property
    def device_memory_size_v2(self) -> int:
        """Bytes of activations of the profile that needs most."""
        return max(self._plan.memory)

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return self._plan.memory[integer(profile_index, "profile_index")]

    def get_tensor_name(self, index: int) -> str:
        return self._plan.tensors[integer(index, "index")].name

    def _tensor(self, name: str) -> _plan.Tensor:
        if text(name, "name") not in self._tensors:
            raise Fault(f"the engine {self.name} has no tensor {name}")
        return self._tensors[name]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode(self._tensor(name).mode)

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self._tensor(name).dtype)

    def get_tensor_shape(self, name: str) -> Dims:
        """-1 where a size is dynamic."""
        return Dims(self._tensor(name).shape)

    def get_tensor_location(self, name: str) -> TensorLocation:
        self._tensor(name)
        return TensorLocation.DEVICE

    def is_shape_inference_io(self, name: str) -> bool:
        self._tensor(name)
        return False

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        """Least, optimal and largest shape of an input."""
        tensor = self._tensor(name)
        if tensor.mode != int(TensorIOMode.INPUT):
            raise Fault(f"{name} is no input, so it has no shapes in a profile")
        profile = self._plan.profiles[integer(profile_index, "profile_index")]
        return [Dims(shape) for shape in profile.get(name, (tensor.shape,) * 3)]

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> IExecutionContext | None:
        """None if there is no memory for it."""
        if not isinstance(strategy, ExecutionContextAllocationStrategy):
            raise TypeError("incompatible function arguments: strategy")
        memory = self._memory(strategy)
        return None if memory is None else IExecutionContext(self, self._reporter.inherit(), memory)

    def _memory(self, strategy: ExecutionContextAllocationStrategy) -> int | None:
        """Address of the activations of a context: 0 if its user manages them, None if there is no memory."""
        if strategy == ExecutionContextAllocationStrategy.USER_MANAGED:
            return 0
        try:
            return device.memory.allocate(self.device_memory_size_v2, "device")
        except Refused:
            self._reporter.error(ErrorCodeTRT.FAILED_ALLOCATION, "Requested device memory is not available")
            return None

    def _run(self, inputs: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        names = [tensor.name for tensor in self._plan.tensors if tensor.mode == int(TensorIOMode.OUTPUT)]
        return dict(zip(names, self._session.run(names, inputs), strict=True))
