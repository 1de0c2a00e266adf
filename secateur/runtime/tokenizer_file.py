# SPDX-License-Identifier: Apache-2.0
"""Read a tokenizer.json that somebody else may have written.

The tokenizers library runs its patterns and replacements in Rust, without bounds of time and memory, and a panic there
is no `Exception`. So patterns that may backtrack without end, and replacements that multiply a text, are refused
before the library reads the file.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers

from secateur.bundle.regular_file import LARGEST_TOKENIZER, read_text
from secateur.errors import InputError, first_line
from secateur.runtime.pattern_bounds import check_pattern

PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
MOST_STEPS = 64
"""Steps of one part."""
MOST_GROWTH = 64
"""Factor by which all replacements together may lengthen a text."""
LONGEST_WORD = 10_000
"""Of max_input_chars_per_word; the time of WordPiece is quadratic in it."""


@contextmanager
def panics(what: str, error: type[InputError]) -> Iterator[None]:
    """Within the block, errors and panics of the tokenizers library become `error`; others pass."""
    try:
        yield
    except InputError:
        raise
    except BaseException as problem:  # pyo3's PanicException is not an Exception, and cannot be imported
        if not isinstance(problem, Exception) and type(problem).__name__ != "PanicException":
            raise
        raise error(f"{what} ({first_line(problem)})") from None


def read_tokenizer(path: Path, error: type[InputError], vocabulary: int | None = None) -> tokenizers.Tokenizer:
    """Return the tokenizer in a tokenizer.json.

    vocabulary  number of token ids of the model; None: not compared

    Raises:
        error: it is not a tokenizer.json, its time or memory cannot be bounded, or it has an id beyond the vocabulary.
    """
    with panics(f"{path} is not a tokenizer.json that can be read", error):
        text = read_text(path, LARGEST_TOKENIZER)
        description = json.loads(text)
        check(description, vocabulary)
        del description  # the library needs as much memory again
        return tokenizers.Tokenizer.from_str(text)


def check(description: Any, vocabulary: int | None = None) -> None:
    """Check the contents of a tokenizer.json.

    Raises:
        ValueError: a step's time or memory cannot be bounded, or an id is beyond the vocabulary.
        LookupError, TypeError, AttributeError: it is not that of a tokenizer.
    """
    for part in PARTS:
        steps = list(_steps(description.get(part)))
        if len(steps) > MOST_STEPS:
            raise ValueError(f"its {part} has {len(steps)} steps, the most is {MOST_STEPS}")
        growth = 1
        for step in steps:
            growth *= _growth(step)
            if growth > MOST_GROWTH:
                raise ValueError(f"its {part} may lengthen a text more than {MOST_GROWTH} times")
            pattern = step.get("pattern")
            if isinstance(pattern, dict) and "Regex" in pattern:
                check_pattern(pattern["Regex"])
    model = description["model"]
    if model.get("max_input_chars_per_word", 0) > LONGEST_WORD:
        raise ValueError(f"its max_input_chars_per_word is above {LONGEST_WORD}")
    if model.get("dropout"):
        raise ValueError(f"it drops merges at random (dropout {model['dropout']})")
    words = model["vocab"]
    last = max([len(words) - 1 if isinstance(words, list) else max(words.values(), default=0)])
    last = max([last, *(token["id"] for token in description.get("added_tokens") or ())])
    if vocabulary is not None and last >= vocabulary:
        raise ValueError(f"it has the token {last}, the model has 0 to {vocabulary - 1}")


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """Yield every step of a part: each object with a "type", in whatever list it is."""
    waiting = [part]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            if "type" in found:
                yield found
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found


def _growth(step: dict[str, Any]) -> int:
    """Return the factor by which a step may lengthen a text, at most."""
    if step["type"] == "Precompiled":
        return _longest_replacement(step["precompiled_charsmap"])
    if step["type"] not in ("Replace", "Prepend"):
        return 1
    content = len(step.get("content", step.get("prepend", "")))
    pattern = step.get("pattern") or {}
    if "Regex" in pattern and not re.search(pattern["Regex"], ""):
        return max(1, content)
    matched = len(pattern.get("String", ""))
    return max(1, -(-content // matched)) if matched else 1 + content


def _longest_replacement(charsmap: str) -> int:
    """Return the most characters that SentencePiece's table of replacements has for one character.

    The table: bytes of the trie (4), the trie, the replacements, each of which ends with a zero.
    """
    table = base64.b64decode(charsmap)
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return max((len(text.decode("utf-8", "replace")) for text in texts.split(b"\0")), default=1)
