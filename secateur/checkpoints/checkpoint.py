# SPDX-License-Identifier: Apache-2.0
"""The files of a checkpoint directory: which file contains which weight of a model, and where.

A safetensors file is eight bytes with the length of the header, the header (JSON), and the tensors. The safetensors
library returns no byte offsets, and it maps the file, whose pages would count as memory of the process; so tensors are
read with plain reads into new memory.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from secateur.bundle.names import is_plain
from secateur.bundle.regular_file import LARGEST_JSON, open_regular, read_text
from secateur.errors import BadModel, first_line

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
FLOATS = ("F64", "F32", "F16", "BF16")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
LARGEST_HEADER = LARGEST_JSON
MOST_TENSORS = 1 << 18
LONGEST_FILE = 255
"""Bytes of the name of a file."""
MEND = "download it again"
UNMERGED = re.compile(r"^base_model\.model\.|\.lora_|\.base_layer\.")
"""Names of tensors of an adapter, or of a model that still has one."""
WRAPPED = re.compile(r"^(module|_orig_mod)\.")
"""Names of tensors of a model within DistributedDataParallel or torch.compile."""


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: `size` bytes from `offset`; dtype is the name in the format, such as "F16"."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int

    def read(self) -> Tensor:
        """Read the tensor into new memory, in its stored dtype.

        Raises:
            BadModel: the file is gone, or shorter than its header says.
        """
        buffer = torch.empty(self.size, dtype=torch.uint8)
        try:
            with self.file.open("rb", buffering=0) as file:
                file.seek(self.offset)
                whole = _fill(file, memoryview(buffer.numpy()))  # type: ignore[arg-type]
        except OSError as problem:
            raise BadModel(f"{self.file} cannot be read ({problem.strerror}); {MEND}") from None
        if not whole:
            raise BadModel(f"{self.file} ends within '{self.name}'; {MEND}")
        return buffer.view(DTYPES[self.dtype]).reshape(self.shape)


def entries(path: Path) -> dict[str, Entry]:
    """Return the tensors of a file by name; reads only the header.

    Raises:
        BadModel: it is not a safetensors file, or it is truncated.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(LARGEST_HEADER, size - 8):
                raise BadModel(f"{path} is not a safetensors file, or it is truncated; {MEND}")
            header = json.loads(file.read(length))
        if len(header) > MOST_TENSORS:
            raise BadModel(f"{path} has {len(header)} tensors, the most is {MOST_TENSORS}; {MEND}")
        header.pop("__metadata__", None)
        found = {name: _entry(path, name, 8 + length, fields) for name, fields in header.items()}
    except OSError as problem:
        raise BadModel(f"{path} cannot be read ({problem.strerror}); {MEND}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as problem:
        if isinstance(problem, BadModel):
            raise
        raise BadModel(f"{path} has a damaged header; {MEND}") from None
    end = max((entry.offset + entry.size for entry in found.values()), default=0)
    if end > size:
        raise BadModel(f"{path} is truncated: it has {size} bytes of {end}; {MEND}")
    if end < size and found:
        raise BadModel(f"{path} is damaged: its tensors end at byte {end}, and it has {size}; {MEND}")
    return found


def _entry(path: Path, name: str, start: int, fields: dict[str, Any]) -> Entry:
    begin, end = fields["data_offsets"]
    shape, dtype = tuple(fields["shape"]), str(fields["dtype"])
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError
    if dtype in DTYPES and math.prod(shape) * DTYPES[dtype].itemsize != end - begin or not 0 <= begin <= end:
        raise BadModel(f"{path} says that '{name}' is {dtype} {list(shape)} in {end - begin} bytes; {MEND}")
    return Entry(path, name, dtype, shape, start + begin, end - begin)


def _fill(file: io.FileIO, view: memoryview) -> bool:
    while view:
        count = file.readinto(view[: 1 << 30])
        if not count:
            return False
        view = view[count:]
    return True


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint by the name they are stored under."""

    folder: Path
    tensors: Mapping[str, Entry]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the index file and the headers of its files, or the header of a single file.

        Raises:
            BadModel: a file or a tensor is missing, damaged or outside the folder; there are only pickles; or the
                tensors are those of an adapter that was not merged, or of a model within a wrapper.
        """
        if (folder / SINGLE).exists():
            return cls(folder, _checked(folder, entries(folder / SINGLE)))
        if (folder / INDEX).exists():
            return cls(folder, _checked(folder, _sharded(folder)))
        if others := sorted(file.name for file in folder.glob("*.safetensors")):
            raise BadModel(
                f"model '{folder}' has neither {SINGLE} nor {INDEX}, only {', '.join(others[:3])}; "
                + (
                    "that is Mistral's format: take the version in transformers' own format"
                    if others[0].startswith("consolidated")
                    else f"add {INDEX}, which says what is in which file"
                )
            )
        if any(next(folder.glob(pattern), None) for pattern in PICKLES):
            raise BadModel(
                f"model '{folder}' has no safetensors, only pickles, which can run code when they are read; "
                "save it again with transformers' save_pretrained"
            )
        raise BadModel(f"model '{folder}' has neither {SINGLE} nor {INDEX}; {MEND}")

    def of(self, model: PreTrainedModel) -> tuple[dict[str, Entry], list[str]] | None:
        """Return the file entry of every weight and persistent buffer of `model`, by its name in the model.

        The second value has the names of all other tensors, as the model would call them.

        Tied weights may be stored once or under each of their names. Older names are renamed by transformers' rules.
        None: the rules also join, split or transpose some weight, so the model must be loaded as a whole.

        Raises:
            BadModel: a weight is missing, has another shape or is not a float.
        """
        rules = get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        wanted = model.state_dict(keep_vars=True)
        found, extra, converted = dict[str, Entry](), list[str](), False
        for name in sorted(self.tensors, key=dot_natural_key):
            new, converter = rename_source_key(name, renamings, converters, model.base_model_prefix, wanted)
            if new not in wanted and name in wanted:
                new, converter = rename_source_key(name, [], [], model.base_model_prefix, wanted)
            if converter is not None and new in wanted:
                self._check_float(name, self.tensors[name])
                converted = True
            elif new in wanted:
                found[new] = self.tensors[name]
            else:
                extra.append(new)
        if converted:
            return None
        self._check(wanted, found)
        return found, extra

    def _check(self, wanted: Mapping[str, object], found: Mapping[str, Entry]) -> None:
        there = {id(wanted[name]) for name in found}  # tied weights may be stored once
        missing = sorted(name for name, weight in wanted.items() if id(weight) not in there)
        if missing:
            raise BadModel(f"model '{self.folder}' lacks {len(missing)} weights, the first is {missing[0]}; {MEND}")
        for name, entry in found.items():
            weight = wanted[name]
            assert hasattr(weight, "shape") and hasattr(weight, "dtype")
            if entry.shape != tuple(weight.shape):
                raise BadModel(
                    f"model '{self.folder}' has {name} of {list(entry.shape)}, its config.json says "
                    f"{list(weight.shape)}; {MEND}"
                )
            if weight.dtype.is_floating_point:
                self._check_float(name, entry)

    def _check_float(self, name: str, entry: Entry) -> None:
        if entry.dtype not in FLOATS:
            raise BadModel(
                f"model '{self.folder}' stores {name} as {entry.dtype}: it is quantized; "
                f"take the checkpoint in {', '.join(FLOATS)} and export with --quantize"
            )


def _checked(folder: Path, tensors: dict[str, Entry]) -> dict[str, Entry]:
    """Refuse tensors of an adapter that was not merged, and of a model within a wrapper; else return all."""
    for name in tensors:
        if UNMERGED.search(name):
            raise BadModel(
                f"model '{folder}' has the tensor {name} of an adapter that was not merged; merge it with peft's "
                "merge_and_unload(), write the model with save_pretrained, and give the new folder"
            )
        if found := WRAPPED.match(name):
            raise BadModel(
                f"model '{folder}' has the tensor {name} of a model within a wrapper ('{found[1]}'); write the model "
                "inside of it with save_pretrained, and give the new folder"
            )
    return tensors


def _sharded(folder: Path) -> dict[str, Entry]:
    try:
        places = json.loads(read_text(folder / INDEX))["weight_map"].items()
        shards = {name: str(file) for name, file in places}
    except (KeyError, TypeError, AttributeError):
        raise BadModel(f"{folder / INDEX} has no 'weight_map'; {MEND}") from None
    except (OSError, ValueError, RecursionError) as problem:
        raise BadModel(f"{folder / INDEX} cannot be read ({first_line(problem)}); {MEND}") from None
    found = dict[str, Entry]()
    for file in sorted(set(shards.values())):
        if not is_plain(file, LONGEST_FILE):
            raise BadModel(
                f"{folder / INDEX} names {file[:LONGEST_FILE]!r}; a name has letters, digits, '.', '_' and '-', so "
                "that it stays in the folder; rename the file, there and in the index"
            )
    for file in sorted(set(shards.values())):
        if not (folder / file).is_file():
            missing = sorted(f for f in set(shards.values()) if not (folder / f).is_file())
            raise BadModel(f"model '{folder}' lacks {len(missing)} of its files, the first is {file}; {MEND}")
        held = entries(folder / file)
        for name in (name for name, shard in shards.items() if shard == file):
            if name not in held:
                raise BadModel(f"{folder / file} lacks '{name}', which {INDEX} says is there; {MEND}")
            found[name] = held[name]
    return found
