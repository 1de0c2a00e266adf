# SPDX-License-Identifier: Apache-2.0
"""Check the files of a checkpoint before transformers reads them, and the sizes that they state before a model is made.

transformers opens whatever is there, and makes every module that config.json asks for.
"""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from secateur.bundle.regular_file import LARGEST_JSON, LARGEST_TOKENIZER, open_regular, read_text
from secateur.checkpoints.hub import FILES
from secateur.errors import BadModel, first_line
from secateur.runtime.tokenizer_file import read_tokenizer

WEIGHTS = ".safetensors"
LARGE = {"tokenizer.json": LARGEST_TOKENIZER, "vocab.json": LARGEST_TOKENIZER, "merges.txt": LARGEST_TOKENIZER}
BOUNDS = (
    (re.compile(r"layers?$|depth|num_blocks|n_layer"), 1024),
    (re.compile(r"experts|heads|patch_size|merge_size"), 4096),
    (re.compile(r"^image_size$|pinpoints"), 8192),
    (re.compile(r"size|dim|width|channels|position_embeddings|seq_length"), 1 << 28),
)
"""Largest values of integers in config.json by their name; the first that fits counts."""
POSITIVE = re.compile(
    r"^(num_hidden_layers|depth|num_(attention_|key_value_)?heads|hidden_size|intermediate_size|head_dim|vocab_size"
    r"|patch_size|image_size|spatial_merge_size|max_position_embeddings)$"
)
"""Names of integers in config.json that are at least 1."""
MEND = "compare it with that of its source"


def check_files(folder: Path) -> None:
    """Check that what transformers may read in the folder are regular files of UTF-8 without a mark, and not too large.

    Raises:
        BadModel: one is not; or tokenizer.json could take unbounded time or memory, see `read_tokenizer`.
    """
    for path in sorted(path for pattern in (*FILES, f"*{WEIGHTS}") for path in folder.glob(pattern)):
        try:
            most = None if path.suffix == WEIGHTS else LARGE.get(path.name, LARGEST_JSON)
            with open_regular(path, most) as file:
                marked = path.suffix == ".json" and file.read(len(BOM_UTF8)) == BOM_UTF8
        except OSError as problem:
            raise BadModel(f"{path} cannot be read: {problem.strerror}; download it again") from None
        if marked:
            raise BadModel(f"{path} begins with a byte order mark, which transformers does not read; save it without")
    if (folder / "tokenizer.json").exists():
        read_tokenizer(folder / "tokenizer.json", BadModel)


def check_config(path: Path) -> None:
    """Check the integers in a config.json before anything of that size is made.

    Raises:
        BadModel: one is outside its bounds; names the field.
    """
    try:
        config = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as problem:
        raise BadModel(f"{path} cannot be read ({first_line(problem)}); download it again") from None
    for name, value in _integers(config):
        field = name.rpartition(".")[2]
        most = next((most for pattern, most in BOUNDS if pattern.search(field)), None)
        if value < 1 and POSITIVE.match(field):
            raise BadModel(f"{path} has {name} = {value}, the least is 1; {MEND}")
        if most is not None and value > most:
            raise BadModel(f"{path} has {name} = {value}, the most is {most}; {MEND}")


def _integers(config: Any) -> Iterator[tuple[str, int]]:
    """Yield the path of keys and the value of every integer; those of a list have the key of the list."""
    waiting = [("", config)]
    while waiting:
        name, found = waiting.pop()
        if isinstance(found, dict):
            waiting += [(f"{name}.{key}" if name else str(key), value) for key, value in found.items()]
        elif isinstance(found, list):
            waiting += [(name, value) for value in found]
        elif type(found) is int:
            yield name, found
