# SPDX-License-Identifier: Apache-2.0
"""The file with the kernels that TensorRT for RTX compiled on this device, so that the next start need not."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from secateur.bundle.atomic import write_bytes
from secateur.bundle.regular_file import LARGEST_LIST, read_bytes
from secateur.errors import BadOutput

logger = logging.getLogger(__name__)
DIGEST = 32


class RuntimeCache:
    """An IRuntimeCache that all engines of a bundle share, and its file: sha256 of the rest, and the serialized cache.

    A file that is damaged, or that the library refuses (it is of another GPU or driver), is ignored with a warning, and
    replaced at the end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cache: Any = None
        self._saved = b""

    def attach(self, config: Any) -> None:
        """Let the contexts that are made with `config`, an IRuntimeConfig, use the cache."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._read()
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the file if kernels were added. If it cannot be written, warn."""
        if self._cache is None:
            return
        blob = bytes(self._cache.serialize())
        data = hashlib.sha256(blob).digest() + blob
        if data == self._saved:
            return
        try:
            write_bytes(self._path, data)
        except BadOutput as problem:
            logger.warning("%s; the kernels are compiled again at the next start", problem)
        else:
            self._saved = data

    def close(self) -> None:
        """Free the cache; no context may use it any more."""
        self._cache = None

    def _read(self) -> None:
        try:
            data = read_bytes(self._path, LARGEST_LIST)
        except OSError:
            return
        digest, blob = data[:DIGEST], data[DIGEST:]
        if hashlib.sha256(blob).digest() == digest and self._cache.deserialize(blob):
            self._saved = data
        else:
            logger.warning("%s is damaged, or from another GPU or driver; it is replaced", self._path)
