# SPDX-License-Identifier: Apache-2.0
"""A tokenizer.json that could take unbounded time or memory, or panics, is refused in one line."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from secateur.bundle.prompt import Prompt
from secateur.errors import BadBundle
from secateur.runtime.pattern_bounds import check_pattern
from secateur.runtime.tokenizer import Tokenizer

PROMPT = Prompt((" user : ", " assistant :"), None, (2,), 0)


def described(**parts: Any) -> str:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return json.dumps(json.loads(made.to_str()) | parts)


def refused(tmp_path: Path, text: str, message: str, vocabulary: int | None = None) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(BadBundle, match=message) as caught:
        Tokenizer.read(PROMPT, tmp_path / "tokenizer.json", vocabulary)
    assert "\n" not in str(caught.value) and "tokenizer.json" in str(caught.value)


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


def charsmap(*texts: bytes) -> str:
    return base64.b64encode((4).to_bytes(4, "little") + bytes(4) + b"\0".join(texts)).decode()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"pre_tokenizer": split("(a+)+$")}, "repeats a group that has repetitions"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "(a|a)*$"}, "content": ""}}, "repeats a group"),
        ({"pre_tokenizer": split("(((")}, "unmatched parenthesis"),
        ({"normalizer": sequence(*[replace("a", "a" * 10)] * 10)}, "its normalizer may lengthen a text more than 64"),
        ({"normalizer": sequence(*[replace("", "a")] * 10)}, "may lengthen a text more than 64 times"),
        ({"decoder": {"type": "Sequence", "decoders": [replace("a", "b" * 99)]}}, "its decoder may lengthen"),
        ({"normalizer": {"type": "Prepend", "prepend": "a" * 99}}, "may lengthen"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap(b"b" * 99)}}, "may lengthen"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap(b"")}}, "index out of bounds"),
        ({"normalizer": sequence(*[{"type": "NFC"}] * 64)}, "its normalizer has 65 steps, the most is 64"),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "chunk size must be non-zero"),
        ({"normalizer": {"type": "Unknown"}}, "that can be read"),
        ({"model": None}, "that can be read"),
        ({"added_tokens": 7}, "that can be read"),
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}, "max_input_chars_per_word": 10**9}}, "is above 10000"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.5}}, "at random"),
    ],
)
def test_bombs_and_panics_are_refused(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    refused(tmp_path, described(**parts), message)


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    for text in ("", "7", "[]", "{}", '{"a":' * 100_000, '{"model": {"vocab": 1}}', "\0"):
        refused(tmp_path, text, "is not a tokenizer.json that can be read")
    (tmp_path / "tokenizer.json").unlink()
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(BadBundle, match="not a regular file"):
        Tokenizer.read(PROMPT, tmp_path / "tokenizer.json")


def test_ids_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, described(), "it has the token 2, the model has 0 to 1", 2)
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["b", 0.0], ["c", 0.0]]}
    refused(tmp_path, described(model=unigram), "it has the token 2, the model has 0 to 1", 2)
    (tmp_path / "tokenizer.json").write_text(described())
    assert Tokenizer.read(PROMPT, tmp_path / "tokenizer.json", 3).decode([1, 2]) == "a b"


WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REAL = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "Qwen2": WORDS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{Lm}\p{M}]+" + WORDS + r"?|\p{N}{1,3}|\s*[\r\n]+",
    "CLIP": r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    "digits from the right": r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
    "nested sets": r" ?[^(\s|[.,!?…])]+|[\p{Lu}&&[^\p{Han}]]*",
    "T5": r" {2,}",
    "Barthez": r"\s{2,}|[\n\r\t]",
    "demo": r"[a-z]+(-[a-z]+)*|[0-9]+|\n|[^\sa-z0-9]",
}


@pytest.mark.parametrize("pattern", REAL.values(), ids=REAL)
def test_patterns_of_real_tokenizers_are_accepted(pattern: str) -> None:
    check_pattern(pattern)
    tokenizers.Regex(pattern)


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+", "(a*)*", "(a|b)*", "(?:a?|b)+", "(a{1,9}){1,9}", "((a+)b)+", "(-[a-z-]+)*", "(-a+-?)*", "(.[a-z]+)*"]
    + ["a*a*a*a*b", "(a*a*)(a*a*)", "((a{99}){99}){99}", r"(a)\1", r"\g<0>", "(?#x)a", "(?x)(a+ #) \n)+", "(?~a)"]
    + [")", "a" * 5000, r"(\w+\s?)*", r"^(([a-z])+.)+[A-Z]([a-z])+$"],
)
def test_patterns_without_a_bound_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        check_pattern(pattern)
