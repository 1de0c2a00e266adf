# SPDX-License-Identifier: Apache-2.0
"""The simulated device detects errors that break a real device, and computes the same as ONNX Runtime."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper


class Simulation:
    """The simulated modules, and shared calls of the tests."""

    def __init__(self) -> None:
        self.trt = importlib.import_module("tensorrt")
        self.cudart = importlib.import_module("cuda.bindings.runtime")
        self.simulated = importlib.import_module("simulated")
        self.logger = self.trt.Logger(self.trt.Logger.INTERNAL_ERROR)
        self.stream = self.ok(self.cudart.cudaStreamCreateWithFlags(self.cudart.cudaStreamNonBlocking))

    def ok(self, result: tuple[Any, ...]) -> Any:
        """Return the result of a successful call."""
        assert result[0] == self.cudart.cudaError_t.cudaSuccess, result
        return result[1] if len(result) > 1 else None

    def device(self, size: int) -> int:
        return int(self.ok(self.cudart.cudaMalloc(size)))

    def pinned(self, array: Any) -> int:
        """Return the address of pinned memory with these contents."""
        address = int(self.ok(self.cudart.cudaMallocHost(array.nbytes)))
        self.read(address, array.dtype, array.shape)[...] = array
        return address

    def read(self, address: int, dtype: Any, shape: tuple[int, ...]) -> Any:
        """Return an array over simulated memory."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.simulated.device.memory.find(address, size).array(np.dtype(dtype), shape)

    def copy(self, target: int, source: int, size: int, kind: str) -> None:
        self.ok(self.cudart.cudaMemcpyAsync(target, source, size, self.cudart.cudaMemcpyKind[kind], self.stream))

    def upload(self, array: Any) -> int:
        """Return the address of device memory that has these contents after synchronization."""
        address = self.device(array.nbytes)
        self.copy(address, self.pinned(array), array.nbytes, "cudaMemcpyHostToDevice")
        return address

    def synchronize(self) -> None:
        self.ok(self.cudart.cudaStreamSynchronize(self.stream))

    def build(self, path: Path, ranges: dict[str, tuple[Any, Any, Any]] | None, workspace: int = 1 << 30) -> Any:
        """Build the plan of an ONNX file; None on failure."""
        builder = self.trt.Builder(self.logger)
        network = builder.create_network(1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = self.trt.OnnxParser(network, self.logger)
        assert parser.parse_from_file(str(path)), [str(parser.get_error(i)) for i in range(parser.num_errors)]
        config = builder.create_builder_config()
        config.set_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE, workspace)
        if ranges:
            optimization = builder.create_optimization_profile()
            for name, shapes in ranges.items():
                optimization.set_shape(name, *shapes)
            config.add_optimization_profile(optimization)
        return builder.build_serialized_network(network, config)

    def context(self, plan: Any) -> Any:
        """Return a context with its own activation memory."""
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        engine = self.trt.Runtime(self.logger).deserialize_cuda_engine(plan)
        context = engine.create_execution_context(strategy)
        context.set_device_memory(self.device(engine.device_memory_size_v2), engine.device_memory_size_v2)
        return context


RANGES = {"x": ((1, 4), (2, 4), (8, 4))}


@pytest.fixture
def made(simulated: Any) -> Simulation:
    return Simulation()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An ONNX file: y [N,4] = x [N,4] + 1."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    graph = helper.make_graph([helper.make_node("Add", ["x", "one"], ["y"], "add")], "adds", [x], [y], [one])
    path = tmp_path / "adds.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def ready(made: Simulation, model: Path, rows: int = 2) -> tuple[Any, int, Any]:
    """Return a context with shapes and addresses set, the address of its output, and its input."""
    context, x = made.context(made.build(model, RANGES)), np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    out = made.device(x.nbytes)
    assert context.set_input_shape("x", x.shape)
    assert context.set_tensor_address("x", made.upload(x)) and context.set_tensor_address("y", out)
    return context, out, x


def test_other_processes_use_the_simulation(simulated: Any) -> None:
    program = (
        "import tensorrt, cuda.bindings.runtime as cudart; print(tensorrt.__version__, cudart.cudaMalloc(8)[0].name)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["10.3.0.30", "cudaSuccess"]


def test_work_is_done_at_synchronization(made: Simulation, model: Path) -> None:
    context, out, x = ready(made, model)
    assert context.infer_shapes() == []
    assert context.execute_async_v3(int(made.stream))
    assert np.isnan(made.read(out, "float32", x.shape)).all()
    made.synchronize()
    np.testing.assert_array_equal(made.read(out, "float32", x.shape), x + 1)
    assert made.simulated.counters.executions == 1


def test_a_recorded_run_reads_its_inputs_again(made: Simulation, model: Path) -> None:
    context, out, x = ready(made, model)
    assert context.execute_async_v3(int(made.stream))
    mode = made.cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    made.ok(made.cudart.cudaStreamBeginCapture(made.stream, mode))
    assert context.execute_async_v3(int(made.stream))
    instance = made.ok(made.cudart.cudaGraphInstantiate(made.ok(made.cudart.cudaStreamEndCapture(made.stream)), 0))
    made.copy(context.get_tensor_address("x"), made.pinned(x * 2), x.nbytes, "cudaMemcpyHostToDevice")
    made.ok(made.cudart.cudaGraphLaunch(instance, made.stream))
    made.synchronize()
    np.testing.assert_array_equal(made.read(out, "float32", x.shape), x * 2 + 1)
    with pytest.raises(made.simulated.Fault, match="instantiated graph"):
        made.cudart.cudaFree(out)


def test_a_run_after_a_new_shape_cannot_be_recorded(made: Simulation, model: Path) -> None:
    context, _, _ = ready(made, model)
    mode = made.cudart.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal
    made.ok(made.cudart.cudaStreamBeginCapture(made.stream, mode))
    assert not context.execute_async_v3(int(made.stream))
    assert made.cudart.cudaStreamEndCapture(made.stream)[0].name == "cudaErrorStreamCaptureInvalidated"


@pytest.mark.parametrize("call", ["cudaDeviceSynchronize()", "cudaMalloc(8)", "cudaFree(0)", "cudaMallocHost(8)"])
def test_calls_that_a_recording_does_not_allow(made: Simulation, call: str) -> None:
    mode = made.cudart.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal
    made.ok(made.cudart.cudaStreamBeginCapture(made.stream, mode))
    name, _, argument = call.rstrip(")").partition("(")
    result = getattr(made.cudart, name)(*([int(argument)] if argument else []))
    assert result[0].name == "cudaErrorStreamCaptureUnsupported"
    assert made.cudart.cudaStreamEndCapture(made.stream)[0].name == "cudaErrorStreamCaptureInvalidated"


def test_the_host_may_not_write_while_a_stream_is_recorded(made: Simulation) -> None:
    pinned = made.pinned(np.zeros(4, np.float32))
    mode = made.cudart.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal
    made.ok(made.cudart.cudaStreamBeginCapture(made.stream, mode))
    made.read(pinned, "float32", (4,))[:] = 1
    with pytest.raises(made.simulated.Fault, match="host wrote"):
        made.cudart.cudaStreamEndCapture(made.stream)


def test_copies_stay_inside_allocations(made: Simulation) -> None:
    kind, fault = made.cudart.cudaMemcpyKind.cudaMemcpyHostToDevice, made.simulated.Fault
    pageable, address = np.zeros(4, np.float32), made.device(16)
    with pytest.raises(fault, match="pageable"):
        made.cudart.cudaMemcpyAsync(address, pageable.ctypes.data, 16, kind, made.stream)
    with pytest.raises(fault, match="32 bytes at 0 of a block of 16"):
        made.cudart.cudaMemcpyAsync(address, made.pinned(np.zeros(8, np.float32)), 32, kind, made.stream)
    with pytest.raises(fault, match="denies"):
        made.cudart.cudaMemcpyAsync(address, made.device(16), 16, kind, made.stream)


def test_memory_of_pending_work_is_not_freed(made: Simulation) -> None:
    address = made.upload(np.zeros(4, np.float32))
    with pytest.raises(made.simulated.Fault, match="waits"):
        made.cudart.cudaFree(address)
    made.synchronize()
    made.ok(made.cudart.cudaFree(address))


def test_memory_is_limited(simulated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATED_DEVICE_MEMORY", "1000")
    made = Simulation()
    made.device(600)
    assert made.cudart.cudaMalloc(600) == (made.cudart.cudaError_t.cudaErrorMemoryAllocation, None)


def test_rows_of_a_pitched_copy(made: Simulation) -> None:
    source = np.arange(24, dtype=np.uint8).reshape(4, 6)
    address, target = made.upload(source), made.device(12)
    kind = made.cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    made.ok(made.cudart.cudaMemcpy2DAsync(target, 3, address + 2, 6, 3, 4, kind, made.stream))
    made.synchronize()
    np.testing.assert_array_equal(made.read(target, "uint8", (4, 3)), source[:, 2:5])


def test_a_pitched_copy_stays_in_its_memory(made: Simulation) -> None:
    """The copy ends after its last row, and no row overlaps one that is read."""
    address, kind = made.upload(np.arange(24, dtype=np.uint8)), made.cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice

    def copy(to: int, pitch: int, width: int, height: int) -> Any:
        target = address + to
        return made.cudart.cudaMemcpy2DAsync(target, pitch, address, pitch, width, height, kind, made.stream)[0].name

    assert copy(3, 6, 3, 4) == "cudaSuccess"
    made.synchronize()
    np.testing.assert_array_equal(made.read(address, "uint8", (8, 3))[1::2], np.arange(24).reshape(8, 3)[::2])
    for to, pitch, width, height, message in (
        (4, 6, 3, 4, "ends|bytes at"),
        (2, 6, 3, 3, "overlap"),
        (6, 6, 3, 2, "overlap"),
    ):
        with pytest.raises(made.simulated.Fault, match=message):
            copy(to, pitch, width, height)
    assert copy(12, 2, 3, 2) == copy(12, 1 << 31, 3, 1) == "cudaErrorInvalidPitchValue"


def test_events_measure_only_what_was_done(made: Simulation) -> None:
    start, end = (made.ok(made.cudart.cudaEventCreate()) for _ in range(2))
    assert made.cudart.cudaEventElapsedTime(start, end)[0].name == "cudaErrorInvalidResourceHandle"
    made.ok(made.cudart.cudaEventRecord(start, made.stream))
    made.upload(np.zeros(4, np.float32))
    made.ok(made.cudart.cudaEventRecord(end, made.stream))
    assert made.cudart.cudaEventElapsedTime(start, end)[0].name == "cudaErrorNotReady"
    made.ok(made.cudart.cudaEventSynchronize(end))
    assert made.ok(made.cudart.cudaEventElapsedTime(start, end)) > 0


def test_addresses_are_aligned_and_present(made: Simulation, model: Path) -> None:
    context, out, _ = ready(made, model)
    assert not context.set_tensor_address("y", out + 16)
    assert context.set_tensor_address("y", 0) and not context.execute_async_v3(int(made.stream))
    with pytest.raises(TypeError):
        context.set_tensor_address("y", np.int64(out))


def test_an_output_may_not_overlap_an_input(made: Simulation, model: Path) -> None:
    context, _, _ = ready(made, model)
    assert context.set_tensor_address("y", context.get_tensor_address("x"))
    with pytest.raises(made.simulated.Fault, match="output y overlaps x"):
        context.execute_async_v3(int(made.stream))


def test_activation_memory(made: Simulation, model: Path) -> None:
    context, _, _ = ready(made, model)
    engine = context.engine
    shared = made.device(engine.device_memory_size_v2)
    bare = engine.create_execution_context(made.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    bare.set_device_memory(shared, engine.device_memory_size_v2 - 1)
    bare.set_input_shape("x", (2, 4))
    for name in "xy":
        bare.set_tensor_address(name, context.get_tensor_address(name))
    assert not bare.execute_async_v3(int(made.stream)), "too small"
    bare.set_device_memory(shared, engine.device_memory_size_v2)
    context.set_device_memory(shared, engine.device_memory_size_v2)
    assert bare.execute_async_v3(int(made.stream))
    with pytest.raises(made.simulated.Fault, match="two streams"):
        context.execute_async_v3(int(made.ok(made.cudart.cudaStreamCreate())))


def test_shapes_stay_in_the_profile(made: Simulation, model: Path) -> None:
    context = made.context(made.build(model, RANGES))
    assert context.infer_shapes() == ["x"]
    assert not context.set_input_shape("x", (9, 4)) and not context.set_input_shape("x", (2, 5))
    with pytest.raises(RuntimeError, match="set optimization profile"):
        context.set_optimization_profile_async(1, int(made.stream))
    assert [tuple(s) for s in context.engine.get_tensor_profile_shape("x", 0)] == list(RANGES["x"])


@pytest.mark.parametrize("ranges", [None, {"x": ((1, 5),) * 3}, {"x": ((1, 4, 4),) * 3}, {"z": ((1,),) * 3} | RANGES])
def test_profiles_must_fit_the_network(made: Simulation, model: Path, ranges: Any) -> None:
    assert made.build(model, ranges) is None


def test_profiles_are_ordered(made: Simulation) -> None:
    with pytest.raises(ValueError, match="inconsistent"):
        made.trt.Builder(made.logger).create_optimization_profile().set_shape("x", (2, 4), (1, 4), (8, 4))


def test_a_small_workspace_is_refused(made: Simulation, model: Path) -> None:
    assert made.build(model, RANGES, workspace=10) is None


def test_an_untyped_network_is_detected(made: Simulation) -> None:
    with pytest.raises(made.simulated.Fault, match="strongly typed"):
        made.trt.Builder(made.logger).create_network()


def test_plans_of_another_device_or_version_are_refused(
    made: Simulation, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = bytes(made.build(model, RANGES))
    runtime = made.trt.Runtime(made.logger)
    assert runtime.deserialize_cuda_engine(plan) is not None
    for damaged in (b"", plan[:-1], plan[:20], b"x" + plan):
        assert runtime.deserialize_cuda_engine(damaged) is None
    for name, value in (("TENSORRT_VERSION", "10.13.3.9"), ("GPU", "Thor"), ("SM", "11.0")):
        with monkeypatch.context() as other:
            other.setenv(f"SIMULATED_{name}", value)
            assert runtime.deserialize_cuda_engine(plan) is None


def test_a_damaged_timing_cache(made: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    config = made.trt.Builder(made.logger).create_builder_config()
    cache = config.create_timing_cache(b"")
    assert config.create_timing_cache(b"junk") is None
    assert config.set_timing_cache(cache, ignore_mismatch=False)
    monkeypatch.setenv("SIMULATED_TENSORRT_VERSION", "11.1.0.106")
    assert not config.set_timing_cache(cache, ignore_mismatch=True)


@pytest.mark.parametrize("operators", ["Add", "TopK,Add"])
def test_the_parser_names_unsupported_operators(
    made: Simulation, model: Path, operators: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMULATED_UNSUPPORTED", operators)
    with pytest.raises(AssertionError, match="with name: add and operator: Add"):
        made.build(model, RANGES)


def test_names_that_do_not_exist(made: Simulation) -> None:
    config = made.trt.Builder(made.logger).create_builder_config()
    with pytest.raises(AttributeError):
        config.max_aux_stream = 0
    with pytest.raises(AttributeError):
        made.trt.nptype  # noqa: B018


def test_a_subclass_must_initialize_its_base(made: Simulation) -> None:
    trt = made.trt

    class Recorder(trt.IErrorRecorder):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.errors: list[str] = []

    with pytest.raises(TypeError, match="must be called"):
        Recorder()
