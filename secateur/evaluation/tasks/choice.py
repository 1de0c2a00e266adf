# SPDX-License-Identifier: Apache-2.0
"""Multiple choice, as in MMBench (arXiv 2307.06281) and ScienceQA (arXiv 2209.09513), scored by the letter.

A line has "text", the whole prompt, or "question", to which the choices are added in LLaVA's words. The choices are
"options" or "choices" (a list, or an object of letter: text), or fields A, B, C ...; given letters are kept. The
answer is a letter, the text of a choice, or its number from 0 where the letters run from A without a gap.
"""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

from secateur.bundle.user_files import Record, text, text_or_number
from secateur.errors import InputError
from secateur.evaluation.datasets import folder
from secateur.evaluation.tasks.base import Question

INSTRUCTION = "Answer with the option's letter from the given choices directly."
ALONE = re.compile(r"\(([A-Za-z])\)|([A-Za-z])(?:[.:)]|\s*$)")
STATED = re.compile(r"\b(?:answer|option|choice)(?:\s+is|:)?:?\s+(?:option\s+)?\(?([A-Z])\b(?!\s+\w)", re.I)


class Task(folder.FolderTask):
    groups = ("category", "subject")
    one_answer = True

    def question(
        self, record: Record, where: str, folders: Sequence[Path], table: dict[str, tuple[str, ...]] | None
    ) -> Question:
        made = super().question(record, where, folders, table)
        options = _options(record, where)
        letter = _letter(made.answers[0], options)
        if letter is None:
            bound = f"one of {', '.join(options) or 'A to Z'}, the text of a choice or its number from 0 in a list"
            raise InputError(f"{where}: the answer is '{made.answers[0]}'; it must be {bound}")
        return dataclasses.replace(made, answers=(letter,), options=options)

    def prompt(self, record: Record, where: str) -> str:
        if record.get("text") is not None:
            return super().prompt(record, where)
        lines = [f"{letter}. {option}" for letter, option in _options(record, where).items()]
        return "\n".join([text(record, where, "question"), *lines, INSTRUCTION])

    def score(self, question: Question, answer: str) -> float:
        return float(chosen(answer, question.options) == question.answers[0])


def chosen(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the letter that an answer names; None if it names none or several. Without options, any letter is valid.

    "A", "(A)", "A.", "A. cat", "The answer is A", or the text of one choice.
    """
    text = answer.strip()
    letters = list(options) or list(string.ascii_uppercase)
    for pattern in (ALONE.match, STATED.search):
        if (found := pattern(text)) and (letter := next(g for g in found.groups() if g).upper()) in letters:
            return letter
    named = [letter for letter, option in options.items() if _plain(option) == _plain(text)]
    if not named:
        padded = f" {_plain(text)} "
        named = [letter for letter, option in options.items() if f" {_plain(option)} " in padded]
    return named[0] if len(named) == 1 else None


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _options(record: Record, where: str) -> dict[str, str]:
    """Return the choices by letter; {} if the line does not list them."""
    value = next((record[name] for name in ("options", "choices") if record.get(name) is not None), None)
    if value is None:
        value = {letter: record[letter] for letter in string.ascii_uppercase if letter in record}
    if isinstance(value, list) and len(value) <= len(string.ascii_uppercase):
        lettered = list(zip(string.ascii_uppercase, value, strict=False))
    elif isinstance(value, dict):
        lettered = [(key.upper(), option) for key, option in value.items() if option is not None]
    else:
        raise InputError(f'{where}: "options" must be a list of at most {len(string.ascii_uppercase)} texts')
    options: dict[str, str] = {}
    for letter, option in lettered:
        if letter not in list(string.ascii_uppercase) or letter in options:
            raise InputError(f"{where}: the options have the letter '{letter}'; each must be one of A to Z, given once")
        options[letter] = text_or_number({"option": option}, where, "option")
    return options


def _letter(answer: str, options: dict[str, str]) -> str | None:
    """Return the letter of the reference answer, which is a letter, or the number or text of a choice."""
    letters = list(options) or list(string.ascii_uppercase)
    if answer.strip().upper().strip("().") in letters:
        return answer.strip().upper().strip("().")
    if answer in options.values():
        return next(letter for letter, option in options.items() if option == answer)
    counted = letters == list(string.ascii_uppercase[: len(letters)])  # else a number is ambiguous
    if counted and answer.isdecimal() and int(answer) < len(letters):
        return letters[int(answer)]
    return None
