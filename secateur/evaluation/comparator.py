# SPDX-License-Identifier: Apache-2.0
"""One graph on two backends, run and compared by Polygraphy. The one file that imports it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata
from polygraphy.comparator import Comparator, SimpleCompareFunc
from polygraphy.logger import G_LOGGER

from secateur.bundle.manifest import GraphSpec
from secateur.bundle.symbolic_shape import bind, resolve_shapes
from secateur.evaluation.backend_diff import Bounds, Feed, Output
from secateur.runtime.backends import base


class Runner(BaseRunner):  # type: ignore[misc]
    """One graph on one of our backends, as Polygraphy wants it."""

    def __init__(self, name: str, backend: base.Backend, graph: GraphSpec) -> None:
        super().__init__(name=name)
        self._backend, self._graph = backend, graph

    def get_input_metadata_impl(self) -> Any:
        metadata = TensorMetadata()
        for spec in self._graph.inputs:
            metadata.add(spec.name, np.dtype(spec.dtype), [d if isinstance(d, int) else None for d in spec.shape])
        return metadata

    def infer_impl(self, feed_dict: Feed) -> Feed:
        """The outputs that have any values."""
        start = time.perf_counter()
        inputs = {name: self._buffer(array.shape, array.dtype) for name, array in feed_dict.items()}
        for name, array in feed_dict.items():
            inputs[name].write(array)
        symbols = bind(self._graph.inputs, {name: array.shape for name, array in feed_dict.items()})
        shapes = resolve_shapes(self._graph.outputs, symbols)
        outputs = {spec.name: self._buffer(shapes[spec.name], spec.dtype) for spec in self._graph.outputs}
        self._backend.run(self._graph.name, inputs, outputs)
        arrays = {name: buffer.numpy().copy() for name, buffer in outputs.items()}
        self.inference_time = time.perf_counter() - start
        return {name: array for name, array in arrays.items() if array.size}

    def _buffer(self, shape: tuple[int, ...], dtype: Any) -> base.Buffer:
        return self._backend.allocate(shape, dtype)


def compare(pair: tuple[Runner, Runner], feed: Feed, bounds: Bounds, share: float) -> list[Output]:
    """What came out of one run on both sides."""
    with G_LOGGER.verbosity(), np.errstate(all="ignore"):  # it would write to stdout, and it divides by zero
        results = Comparator.run(list(pair), data_loader=[feed])
        expected: Feed = {name: np.asarray(array) for name, array in results[1][1][0].items()}
        sizes = {name: float(np.abs(array.astype(np.float64)).max()) for name, array in expected.items()}
        whole = {name for name, array in expected.items() if not np.issubdtype(array.dtype, np.floating)}
        atol = {name: share * size if bounds.atol is None else bounds.atol for name, size in sizes.items()}
        rtol = dict.fromkeys(sizes, bounds.rtol or 0.0)
        exact = dict.fromkeys(whole, 0.0)
        rule = SimpleCompareFunc(atol=atol | exact, rtol=rtol | exact)
        (compared,) = Comparator.compare_accuracy(results, compare_func=rule)
        (found,) = compared[pair[0].name, pair[1].name]
    return [_output(name, array.dtype.name, found[name], sizes[name]) for name, array in expected.items()]


def _output(name: str, dtype: str, result: Any, size: float) -> Output:
    difference = result.max_absdiff if result.max_absdiff == result.max_absdiff else float("inf")
    return Output(name, dtype, difference, difference / max(size, 1e-12), bool(result))
