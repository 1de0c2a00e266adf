# SPDX-License-Identifier: Apache-2.0
"""What a build is told: memory, level, verbosity, optimisation profiles and the timing cache."""

from __future__ import annotations

from typing import Any

from tensorrt import _plan
from tensorrt._enumerations import BuilderFlag, ErrorCodeTRT, MemoryPoolType, ProfilingVerbosity
from tensorrt._logging import Reporter
from tensorrt._values import Dims, IHostMemory, dims, flag, integer, text

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


class IOptimizationProfile:
    __slots__ = ("_shapes",)

    def __init__(self) -> None:
        self._shapes: dict[str, Shapes] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        least, best, most = dims(min), dims(opt), dims(max)
        ranks = {len(least), len(best), len(most)}
        if len(ranks) > 1 or not all(0 <= a <= b <= c for a, b, c in zip(least, best, most, strict=True)):
            raise ValueError(f"Shape provided for {input} is inconsistent: {least}, {best}, {most}")
        self._shapes[text(input, "input")] = (least, best, most)

    def get_shape(self, input: str) -> list[Dims]:
        return [Dims(shape) for shape in self._shapes.get(text(input, "input"), ())]


class ITimingCache:
    """Tactics measured before; here the names of what was built."""

    __slots__ = ("_entries", "_made_on")

    def __init__(self, entries: set[str], made_on: tuple[str, ...]) -> None:
        self._entries, self._made_on = entries, made_on

    def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool:
        ignore = flag(ignore_mismatch, "ignore_mismatch")
        if not _fits(input_cache, self._made_on, ignore):
            return False
        self._entries |= input_cache._entries
        return True

    def serialize(self) -> IHostMemory:
        return IHostMemory(_plan.pack_cache(self._entries, self._made_on))


class IBuilderConfig:
    __slots__ = ("_aux_streams", "_flags", "_level", "_limits", "_profiles", "_reporter", "_timing", "_verbosity")

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._limits: dict[MemoryPoolType, int] = {}
        self._profiles: list[IOptimizationProfile] = []
        self._timing: ITimingCache | None = None
        self._flags = {BuilderFlag.TF32}
        self._level, self._aux_streams, self._verbosity = 3, -1, ProfilingVerbosity.LAYER_NAMES_ONLY

    def _platform(self) -> tuple[str, str, str]:
        """Version, GPU and SM of the plan."""
        return (_plan.version(), *_plan.device())

    def _told(self) -> dict[str, int]:
        """What a plan keeps of the settings, see `Plan.config`."""
        return {
            "level": self._level,
            "aux_streams": self._aux_streams,
            "workspace": self.get_memory_pool_limit(MemoryPoolType.WORKSPACE),
            "tf32": int(BuilderFlag.TF32 in self._flags),
        }

    @property
    def builder_optimization_level(self) -> int:
        return self._level

    @builder_optimization_level.setter
    def builder_optimization_level(self, level: int) -> None:
        self._level = integer(level, "builder_optimization_level")

    @property
    def max_aux_streams(self) -> int:
        return self._aux_streams

    @max_aux_streams.setter
    def max_aux_streams(self, streams: int) -> None:
        self._aux_streams = integer(streams, "max_aux_streams")

    @property
    def profiling_verbosity(self) -> ProfilingVerbosity:
        return self._verbosity

    @profiling_verbosity.setter
    def profiling_verbosity(self, verbosity: ProfilingVerbosity) -> None:
        if not isinstance(verbosity, ProfilingVerbosity):
            raise TypeError("incompatible function arguments: profiling_verbosity")
        self._verbosity = verbosity

    def clear_flag(self, flag: BuilderFlag) -> None:
        if not isinstance(flag, BuilderFlag):
            raise TypeError("incompatible function arguments: flag")
        self._flags.discard(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        if not isinstance(pool, MemoryPoolType):
            raise TypeError("incompatible function arguments: pool")
        self._limits[pool] = integer(pool_size, "pool_size")

    def get_memory_pool_limit(self, pool: MemoryPoolType) -> int:
        return self._limits.get(pool, 1 << 40)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        """Its index."""
        if not isinstance(profile, IOptimizationProfile):
            raise TypeError("incompatible function arguments: profile")
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: Any) -> ITimingCache | None:
        """None, and an error in the log, if the bytes are damaged."""
        data = bytes(memoryview(serialized_timing_cache))
        made_on = (_plan.version(), *_plan.device())
        if not data:
            return ITimingCache(set(), made_on)
        try:
            return ITimingCache(*_plan.unpack_cache(data))
        except ValueError as problem:
            self._reporter.error(ErrorCodeTRT.INVALID_ARGUMENT, f"Failed to deserialize the timing cache: {problem}")
            return None

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if not isinstance(cache, ITimingCache):
            raise TypeError("incompatible function arguments: cache")
        ignore = flag(ignore_mismatch, "ignore_mismatch")
        if not _fits(cache, (_plan.version(), *_plan.device()), ignore):
            self._reporter.error(ErrorCodeTRT.INVALID_ARGUMENT, "The timing cache is of another version or device")
            return False
        self._timing = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._timing


def _fits(cache: ITimingCache, here: tuple[str, ...], ignore_device: bool) -> bool:
    """The version must be the same; the device only if nobody says otherwise."""
    return cache._made_on == here or (ignore_device and cache._made_on[0] == here[0])
