# SPDX-License-Identifier: Apache-2.0
"""Find the files that an ONNX file refers to (TensorProto.external_data), without the package onnx.

Libraries open these files by themselves, so a bundle must list each of them. The fields are those of onnx.proto; only
messages that contain the word "location" are entered, so a graph of thousands of nodes takes milliseconds.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path

from secateur.bundle.regular_file import open_regular

MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "function": {7: "node", 11: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
"""Of each message, the fields that can contain a tensor."""
KEY, VALUE = 1, 2
LOCATION = b"location"
DEEPEST = 64
"""Messages within messages; graphs of a bundle have no subgraphs."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def external_files(path: Path, name: str) -> set[str]:
    """Return the files of a bundle that the ONNX file `path`, called `name` in the bundle, takes tensors from.

    A location is relative to the folder of the ONNX file; it is returned as it is spelled, after that folder.

    Raises:
        ValueError: it is not a protobuf message, or a location is not text.
        OSError: it cannot be read.
    """
    with open_regular(path) as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        words = [found.start() for found in re.finditer(LOCATION, data)]
        found = _locations(data, 0, len(data), "model", words, 0) if words else iter(())
        return {name.rpartition("/")[0] + "/" * ("/" in name) + location for location in found}


def _locations(data: mmap, start: int, end: int, message: str, words: list[int], depth: int) -> Iterator[str]:
    """Yield the locations in a message, which is at start:end of the data; `words` is where the word occurs."""
    if depth > DEEPEST:
        raise ValueError(f"it has messages nested deeper than {DEEPEST}")
    inner, pair = MESSAGES[message], dict[int, bytes]()
    for field, first, last in _fields(data, start, end):
        if message == "entry" and field in (KEY, VALUE):
            pair[field] = data[first:last]  # of a field given twice, the last one counts
        elif field in inner and (at := bisect_left(words, first)) < len(words) and words[at] < last:
            yield from _locations(data, first, last, inner[field], words, depth + 1)
    if pair.get(KEY) == LOCATION:
        yield pair.get(VALUE, b"").decode("utf-8")


def _fields(data: mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number and the place of each field of bytes in a message."""
    while start < end:
        tag, start = _varint(data, start, end)
        tag &= 0xFFFFFFFF  # as libprotobuf reads it
        kind = tag & 7
        if kind == VARINT:
            _, start = _varint(data, start, end)
            continue
        if kind == BYTES:
            length, start = _varint(data, start, end)
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"it has a field of the unknown type {kind}")
        if length > end - start:
            raise ValueError("a field is longer than its message")
        if kind == BYTES:
            yield tag >> 3, start, start + length
        start += length


def _varint(data: mmap, start: int, end: int) -> tuple[int, int]:
    """Return the number at `start`, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if start >= end:
            break
        byte, start = data[start], start + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
    raise ValueError("a number is cut off or too long")
