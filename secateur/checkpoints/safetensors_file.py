# SPDX-License-Identifier: Apache-2.0
"""Offsets of the tensors in a safetensors file, and reading one tensor at a time.

A file is eight bytes with the length of the header, the header (JSON), and the tensors. The safetensors library
returns no byte offsets, and it maps the file, whose pages would count as memory of the process; so tensors are read
with plain reads into new memory.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.errors import BadModel

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
LARGEST_HEADER = 100 << 20
MEND = "download it again"


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
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(LARGEST_HEADER, size - 8):
                raise BadModel(f"{path} is not a safetensors file, or it is truncated; {MEND}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        found = {name: _entry(path, name, 8 + length, fields) for name, fields in header.items()}
    except OSError as problem:
        raise BadModel(f"{path} cannot be read ({problem.strerror}); {MEND}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
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
