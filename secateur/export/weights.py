# SPDX-License-Identifier: Apache-2.0
"""Weights of a bundle: data files next to the graphs, each written once, and the references to them in a graph.

One file for each part of the model (embed, layer_00, layer_01, ..., head, projector, vision). Files do not depend on
the cuts between segments or the opset, so graphs and bundles can share them. Offsets are multiples of a page, for
memory maps.

A weight of nn.Linear is stored as MatMul and Gemm read it, [in, out]; a Transpose in the graph would copy it in memory.
Where weights are inputs of the graphs (weight_inputs.py), it is stored as [out, in], and joined weights without a gap.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import onnx_ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from secateur.bundle.reader import sha256
from secateur.checkpoints.streaming import value
from secateur.errors import BadBundle
from secateur.families.base import Family
from secateur.progress import Progress, silent

Weights = Mapping[str, nn.Parameter]
PAGE = 4096
SUFFIX = ".data"
SMALLEST = 256
"""Bytes; smaller constants stay in the graph, because shape inference may need them."""


@dataclass(frozen=True)
class WeightPlace:
    """Position of a weight: `size` bytes from `offset` in a file next to the graphs."""

    file: str
    offset: int
    size: int


class WeightStore:
    """Data files of `parts` in `folder`; a weight of several parts is stored with the first of them.

    parts      modules by the name of their file
    shared     weight files of another bundle of the same model and dtype, with their sha256; they are linked (or
               copied to another file system) instead of written
    quantized  weights that are left out, because graphs store integers in their place
    inputs     the weights of products are inputs of the graphs
    """

    def __init__(
        self,
        folder: Path,
        parts: Mapping[str, nn.Module],
        shared: Mapping[Path, str] | None = None,
        progress: Progress = silent,
        quantized: frozenset[nn.Parameter] = frozenset(),
        inputs: bool = False,
    ) -> None:
        self._folder = folder
        self._shared = {path.name: (path, digest) for path, digest in (shared or {}).items()}
        self._progress = progress
        self.inputs = inputs
        linear = _linear(parts.values())
        self._transposed = linear & quantized if inputs else linear
        self._groups: dict[nn.Parameter, tuple[nn.Parameter, ...]] = {}
        """Weights that are stored without a gap, by the first of them."""
        self._files: dict[nn.Parameter, str] = {}
        self._places: dict[nn.Parameter, WeightPlace] = {}
        for name, module in parts.items():
            for weight in module.parameters():
                if weight not in quantized and self._files.setdefault(weight, f"{name}{SUFFIX}") == f"{name}{SUFFIX}":
                    self._groups[weight] = (weight,)

    def has(self, weight: nn.Parameter) -> bool:
        """Return whether the store has this weight."""
        return weight in self._files

    def is_transposed(self, weight: nn.Parameter) -> bool:
        """Return whether graphs read this weight as [in, out]."""
        return weight in self._transposed

    def join(self, weights: Sequence[nn.Parameter]) -> bool:
        """Store weights of one file without a gap, in this order; returns False if that is too late."""
        first, *others = weights
        if self._groups.get(first) == tuple(weights):
            return True
        alone = len(set(weights)) == len(weights) and all(self._groups.get(w) == (w,) for w in weights)
        if not alone or len({self._files[weight] for weight in weights}) > 1 or first in self._places:
            return False
        self._groups[first] = tuple(weights)
        for weight in others:
            del self._groups[weight]
        return True

    def place(self, weight: nn.Parameter) -> WeightPlace | None:
        """Return the position of a weight, None if it is not in the store; writes its file at the first call."""
        file = self._files.get(weight)
        if file is not None and weight not in self._places:
            self._lay_out(file)
            if not self._link(file):
                self._write(file)
        return self._places.get(weight)

    def _lay_out(self, file: str) -> None:
        """Choose the places of the weights of a file."""
        end = 0
        for group in (group for first, group in self._groups.items() if self._files[first] == file):
            end = _next_page(end)
            for weight in group:
                self._places[weight] = WeightPlace(file, end, weight.nbytes)
                end += weight.nbytes

    def _of_file(self, file: str) -> list[nn.Parameter]:
        """Return the weights of a file in its order."""
        return [weight for weight, place in self._places.items() if place.file == file]

    def _write(self, file: str) -> None:
        weights = self._of_file(file)
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / file).open("xb") as out:
            for done, weight in enumerate(weights):
                self._progress("weights", file, done, len(weights))
                values = (value(weight).T if weight in self._transposed else value(weight)).contiguous().reshape(-1)
                out.seek(self._places[weight].offset)  # fills a gap with zeros
                out.write(memoryview(values.view(torch.uint8).numpy()))  # type: ignore[arg-type]

    def _holds(self, source: Path, file: str) -> bool:
        """Return whether `source` has every weight of a file at its place."""
        stored = torch.from_file(str(source), size=source.stat().st_size, dtype=torch.uint8)
        places = ((weight, self._places[weight]) for weight in self._of_file(file))
        return all(
            torch.equal(
                stored[place.offset : place.offset + place.size],
                (value(weight).T if weight in self._transposed else value(weight))
                .contiguous()
                .view(-1)
                .view(torch.uint8),
            )
            for weight, place in places
        )

    def _link(self, file: str) -> bool:
        """Link a file of the other bundle, if it has one of this name and size; returns whether it has.

        Raises:
            BadBundle: the file does not have the hash in the other bundle's manifest.
        """
        source, digest = self._shared.get(file, (None, ""))
        last = self._places[self._of_file(file)[-1]]
        if source is None or not source.is_file() or source.stat().st_size != last.offset + last.size:
            return False
        if sha256(source) != digest.removeprefix("sha256:"):
            raise BadBundle(f"{source} is damaged and cannot be shared; export that bundle again")
        if self.inputs and not self._holds(source, file):  # another bundle may join other weights
            return False
        self._folder.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            os.link(source, self._folder / file)
            return True
        shutil.copyfile(source, self._folder / file)
        return True


def model_parts(family: Family) -> dict[str, nn.Module]:
    """Return the parts of a model by the names of their files."""
    decoder = family.decoder
    digits = max(2, len(str(len(decoder.layers) - 1)))
    layers = {f"layer_{number:0{digits}}": layer for number, layer in enumerate(decoder.layers)}
    head = nn.ModuleList([decoder.norm, decoder.head])
    return {"embed": family.embed(), **layers, "head": head, "projector": family.projector(), "vision": family.vision()}


def _next_page(offset: int) -> int:
    return -(-offset // PAGE) * PAGE


def _linear(parts: Iterable[nn.Module]) -> frozenset[nn.Parameter]:
    """Return the weights used by linear layers only, so not an embedding that is tied to the head."""
    linear, other = set[nn.Parameter](), set[nn.Parameter]()
    for module in (module for part in parts for module in part.modules()):
        for name, weight in module.named_parameters(recurse=False):
            (linear if isinstance(module, nn.Linear) and name == "weight" else other).add(weight)
    return frozenset(linear - other)


def name_weights(model: onnx_ir.Model, named: Weights) -> Weights:
    """Return the parameters among the initializers, and remove their (fake) values so that no pass folds them."""
    found = dict[str, nn.Parameter]()
    for name, initializer in model.graph.initializers.items():
        if isinstance(getattr(initializer.const_value, "raw", None), FakeTensor):
            found[name] = named[name]
            initializer.const_value = None
    return found


def read_transposed(model: onnx_ir.Model, weights: Weights, store: WeightStore) -> None:
    """Give the weights values that are read on demand; those of nn.Linear as [in, out], without a Transpose."""
    for name, weight in weights.items():
        initializer = model.graph.initializers.get(name)
        if initializer is None:
            continue
        transposed = store.is_transposed(weight)
        if transposed:
            _use_transposed(initializer)
        initializer.const_value = _lazy(initializer, weight, transposed)
        initializer.shape = initializer.const_value.shape
    RemoveUnusedNodesPass()(model)


def externalize(model: onnx_ir.Model, weights: Weights, store: WeightStore | None, path: Path, limit: int) -> None:
    """Move weights to the store, and other constants of more than `limit` bytes in all to a file of this graph."""
    large = list[tuple[onnx_ir.Value, onnx_ir.TensorProtocol]]()

    def refer(initializer: onnx_ir.Value, tensor: onnx_ir.TensorProtocol, file: str, offset: int, size: int) -> None:
        shape, name = onnx_ir.Shape(tensor.shape.numpy()), initializer.name or ""
        initializer.const_value = onnx_ir.ExternalTensor(
            file, offset, size, tensor.dtype, shape=shape, name=name, base_dir=path.parent
        )

    for name, initializer in model.graph.initializers.items():
        tensor = initializer.const_value
        assert tensor is not None
        place = store.place(weights[name]) if store is not None and name in weights else None
        if place is not None:
            refer(initializer, tensor, place.file, place.offset, place.size)
        elif tensor.nbytes >= SMALLEST:
            large.append((initializer, tensor))
    if sum(tensor.nbytes for _, tensor in large) <= limit:
        return
    file, end = f"{path.name}{SUFFIX}", 0
    with (path.parent / file).open("xb") as out:
        for initializer, tensor in large:
            start = _next_page(end)
            end = start + tensor.nbytes
            out.seek(start)
            out.write(tensor.tobytes())
            refer(initializer, tensor, file, start, tensor.nbytes)


def _lazy(initializer: onnx_ir.Value, weight: nn.Parameter, transposed: bool) -> onnx_ir.LazyTensor:
    def read() -> onnx_ir.TensorProtocol:
        values = value(weight).T.contiguous() if transposed else value(weight)
        return onnx_ir.tensor(values, name=initializer.name)

    shape = reversed(weight.shape) if transposed else weight.shape
    assert initializer.dtype is not None
    return onnx_ir.LazyTensor(read, dtype=initializer.dtype, shape=onnx_ir.Shape(shape), name=initializer.name)


def _use_transposed(weight: onnx_ir.Value) -> None:
    """Change the readers of a weight [out, in] to read [in, out]."""
    transposed: onnx_ir.Value | None = None
    for node, index in list(weight.uses()):
        if node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == [1, 0]:
            node.outputs[0].replace_all_uses_with(weight)
        elif node.op_type == "Gemm" and index < 2:
            name = ("transA", "transB")[index]
            flag = node.attributes.get(name)
            node.attributes[name] = onnx_ir.AttrInt64(name, 0 if flag is not None and flag.as_int() else 1)
        else:
            if transposed is None:
                transposed = _transpose(weight, node)
            node.replace_input_with(index, transposed)


def _transpose(weight: onnx_ir.Value, node: onnx_ir.Node) -> onnx_ir.Value:
    turned = onnx_ir.node("Transpose", [weight], {"perm": [1, 0]}, name=f"{weight.name}_transpose")
    turned.outputs[0].name = f"{weight.name}_transposed"
    turned.outputs[0].shape = weight.shape
    if weight.dtype is not None:
        turned.outputs[0].dtype = weight.dtype
    assert node.graph is not None
    node.graph.insert_before(node.graph[0], turned)
    return turned.outputs[0]
