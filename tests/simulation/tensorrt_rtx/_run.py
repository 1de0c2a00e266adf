# SPDX-License-Identifier: Apache-2.0
"""Engines whose kernels are compiled for each shape when it is first run, and kept in a runtime cache."""

from __future__ import annotations

from typing import Any

from simulated import counters, settings
from tensorrt import _context, _engine, _plan
from tensorrt._enumerations import ExecutionContextAllocationStrategy
from tensorrt._values import Enumeration, IHostMemory, integer


class DynamicShapesKernelSpecializationStrategy(Enumeration):
    LAZY = 0
    EAGER = 1
    NONE = 2


class IRuntimeCache:
    """Kernels compiled on this device; here the names of what was compiled."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: set[str] = set()

    def serialize(self) -> IHostMemory:
        return IHostMemory(_plan.pack_cache(self._entries, _here()))

    def deserialize(self, blob: Any) -> bool:
        """False for damaged bytes, or those of another version or device."""
        try:
            entries, made_on = _plan.unpack_cache(bytes(memoryview(blob)))
        except ValueError:
            return False
        if made_on == _here():
            self._entries |= entries
        return made_on == _here()


class IRuntimeConfig:
    __slots__ = ("_cache", "_strategy", "dynamic_shapes_kernel_specialization_strategy")

    def __init__(self) -> None:
        self._cache: IRuntimeCache | None = None
        self._strategy = ExecutionContextAllocationStrategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def set_execution_context_allocation_strategy(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> None:
        if not isinstance(strategy, ExecutionContextAllocationStrategy):
            raise TypeError("incompatible function arguments: strategy")
        self._strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache | None = None) -> bool:
        self._cache = cache
        return True


class Runtime(_engine.Runtime):
    __slots__ = ()

    def _version(self) -> str:
        return settings.rtx_version()

    def _runs(self, plan: _plan.Plan) -> bool:
        return "{}{}".format(*settings.capability()) in plan.sm.split(",")

    def _engine(self, plan: _plan.Plan) -> ICudaEngine:
        return ICudaEngine(plan, self._reporter.inherit())


class ICudaEngine(_engine.ICudaEngine):
    __slots__ = ()

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(  # type: ignore[override]
        self, runtime_config: IRuntimeConfig | None = None
    ) -> IExecutionContext | None:
        config = IRuntimeConfig() if runtime_config is None else runtime_config
        if not isinstance(config, IRuntimeConfig):
            raise TypeError("incompatible function arguments: runtime_config")
        memory = self._memory(config._strategy)
        return None if memory is None else IExecutionContext(self, self._reporter.inherit(), memory, config)


class IExecutionContext(_context.IExecutionContext):
    __slots__ = ("_config", "_ready")

    def __init__(self, engine: ICudaEngine, reporter: Any, memory: int, config: IRuntimeConfig) -> None:
        super().__init__(engine, reporter, memory)
        self._config = config
        self._ready: set[str] = set()

    def is_stream_capturable(self, stream: int) -> bool:
        """Whether a capture of the next run with the shapes of the last one succeeds."""
        integer(stream, "stream")
        return self._settled is not None and self._capturable(self._settled)

    def _compile(self, settled: object) -> None:
        name = f"{self.engine.name} {settled}"
        cache = self._config._cache
        if name not in self._ready and (cache is None or name not in cache._entries):
            counters.compiled += 1
        self._ready.add(name)
        if cache is not None:
            cache._entries.add(name)

    def _capturable(self, settled: object) -> bool:
        """Only an engine without memory of its own, whose kernels are not still compiled in the background."""
        strategy = self._config.dynamic_shapes_kernel_specialization_strategy
        eager = strategy == DynamicShapesKernelSpecializationStrategy.EAGER
        return super()._capturable(settled) and eager and bool(self._engine._plan.config["user_allocation"])


def _here() -> tuple[str, ...]:
    return (settings.rtx_version(), *_plan.device())
