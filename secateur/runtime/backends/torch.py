# SPDX-License-Identifier: Apache-2.0
"""The same graphs, run eagerly by torch from the checkpoint: the oracle of the other backends.

It needs the `export` extra and the checkpoint that the bundle was made from. No other backend imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from secateur.bundle.manifest import GraphSpec
from secateur.bundle.reader import Bundle
from secateur.errors import BackendMissing, BadBundle
from secateur.runtime.backends import base
from secateur.runtime.backends.base import check_device, check_slices, register_dtype
from secateur.runtime.receipt import Stopwatch

try:
    import torch

    from secateur.bundle.schedule_file import read_schedule
    from secateur.export.graphs import build_graphs, move, sized_model
    from secateur.export.quantized_graph import weights_as_stored
    from secateur.export.targets import target
    from secateur.families.base import Family
    from secateur.load_model import load_again
except ImportError as problem:
    raise BackendMissing(f"backend 'torch' needs {problem.name}; pip install 'secateur[export]'") from None


class TensorBuffer:
    """A torch tensor as a Buffer."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(str(self.tensor.dtype).removeprefix("torch."))

    def view(self, *index: slice) -> TensorBuffer:
        check_slices(index)
        return TensorBuffer(self.tensor[index])

    def write(self, source: base.Buffer | base.Array) -> None:
        if source.shape != self.shape:
            raise ValueError(f"cannot write shape {source.shape} into shape {self.shape}")
        if not isinstance(source, TensorBuffer):
            array = source if isinstance(source, np.ndarray) else source.numpy()
            source = TensorBuffer(_from_numpy(np.ascontiguousarray(array)))
        self.tensor.copy_(source.tensor)

    def numpy(self) -> base.Array:
        host = self.tensor.cpu()  # the same memory if it is there
        if host.dtype == torch.bfloat16:
            return host.view(torch.int16).numpy().view(self.dtype)
        array: base.Array = host.numpy()
        return array


class Backend(base.Backend):
    """Runs modules of the loaded checkpoint, by graph name.

    device  "cpu" (also None) or "cuda", to which the whole model is moved, `family` too

    If the bundle has integer weights, the decoder layers of `family` use the dequantized weights until `close`; gates
    use the exact weights.

    Raises:
        BackendMissing: torch finds no CUDA device.
        BadModel: the checkpoint in the manifest cannot be loaded.
        BadBundle: it is not the model that the bundle was made from.
    """

    def __init__(
        self, bundle: Bundle, threads: int | None = None, family: Family | None = None, device: str | None = None
    ) -> None:
        self._device = check_device("torch", device, ("cpu", "cuda"))
        if self._device == "cuda":
            check_cuda("backend 'torch'")
        manifest = bundle.manifest
        register_dtype(manifest.dtype)
        kind = target(manifest.target, manifest.dtype)
        if threads is not None:
            torch.set_num_threads(threads)
        family = family or load_again(bundle, kind.torch_dtype)
        buckets = []
        for each in manifest.buckets:
            seen = family.at(each.layout.image_size, each.layout.images)
            if seen.identity != each.model:
                raise BadBundle(
                    f"model '{family.source}' is not the one this bundle was exported from; export it again"
                )
            schedules = [read_schedule(bundle.path(ref.file)) for ref in each.schedules.values()]
            buckets.append(sized_model(seen, each.layout, schedules))
        self._graphs = {graph.spec.name: graph for graph in build_graphs(buckets, kind)}
        if self._device != "cpu":
            move(family, self._graphs.values(), self._device)
        self._stored = ExitStack()
        if (how := manifest.quantization) is not None:
            self._stored.enter_context(weights_as_stored(family.decoder.layers, how))

    def load(self, graph: GraphSpec) -> None:
        if graph.name not in self._graphs or self._graphs[graph.name].spec != replace(graph, weights=()):
            raise BadBundle(
                f"graph '{graph.name}' differs from what this version would export; export the bundle again"
            )

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any] | type | str) -> TensorBuffer:
        return TensorBuffer(torch.zeros(shape, dtype=getattr(torch, np.dtype(dtype).name), device=self._device))

    def run(self, graph: str, inputs: Mapping[str, base.Buffer], outputs: Mapping[str, base.Buffer]) -> None:
        known = self._graphs[graph]
        with torch.inference_mode():
            results = known.module(*(_tensor(inputs[x.name]) for x in known.spec.inputs))
            results = results if isinstance(results, tuple) else (results,)
            for spec, result in zip(known.spec.outputs, results, strict=True):
                tensor = _tensor(outputs[spec.name])
                if tensor.shape != result.shape:
                    raise ValueError(
                        f"graph '{graph}' gives {spec.name} {tuple(result.shape)}, not {tuple(tensor.shape)}"
                    )
                tensor.copy_(result)

    def clock(self, watch: Stopwatch, stage: str) -> AbstractContextManager[None]:
        return watch(stage) if self._device == "cpu" else _until_done(watch, stage)

    def describe(self) -> dict[str, str]:
        if self._device == "cpu":
            return {}
        return {"GPU": torch.cuda.get_device_name(), "CUDA": str(torch.version.cuda), "torch": str(torch.__version__)}

    def close(self) -> None:
        self._stored.close()
        self._graphs = {}


def check_cuda(who: str) -> None:
    """Check that torch can use a GPU.

    Raises:
        BackendMissing: it was built without CUDA, or finds no device.
    """
    if not torch.cuda.is_available():
        why = "finds none" if torch.version.cuda else "is built without CUDA"
        raise BackendMissing(
            f"{who} needs a CUDA device, and torch {torch.__version__} {why}; install a torch with CUDA on a machine "
            "with a GPU, or use --device cpu"
        )


@contextmanager
def _until_done(watch: Stopwatch, stage: str) -> Iterator[None]:
    """Add the time until the device has finished the work of the block."""
    with watch(stage):
        yield
        torch.cuda.synchronize()


def _tensor(buffer: base.Buffer) -> torch.Tensor:
    if not isinstance(buffer, TensorBuffer):
        raise TypeError(f"backend 'torch' needs its own buffers, not {type(buffer).__name__}")
    return buffer.tensor


def _from_numpy(array: base.Array) -> torch.Tensor:
    """Return a tensor that shares the memory of `array`, also for bf16, which torch does not convert."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
