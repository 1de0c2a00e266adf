# SPDX-License-Identifier: Apache-2.0
"""TextVQA (arXiv 1904.08920): accuracy against ten annotators.

Each annotator in turn is left out, and the answer scores 1/3 for every other annotator who gave it, at most 1; the
score is the mean of the ten. TextVQA's annotations (TextVQA_0.5.1_val.json) can be given as --data, or as --answers to
questions in LLaVA's layout. LLaVA uses the name of the image as question_id, so questions are identified and matched by
image and question.

Answers are normalized as in the VQA evaluation (visualqa.org/evaluation.html): lower case, no periods and articles,
number words as digits, contractions with their apostrophe; punctuation next to a space is removed, other punctuation is
replaced by a space.
"""

from __future__ import annotations

import itertools
import re

from secateur.bundle.user_files import Record, text_or_number
from secateur.errors import InputError
from secateur.evaluation.datasets import folder
from secateur.evaluation.tasks.base import Question

ANNOTATORS = 10
HINT = "reference ocr token"
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = {"a", "an", "the"}
NUMBERS = {"none": "0"} | {
    word: str(i)
    for i, word in enumerate("zero one two three four five six seven eight nine ten".split())
}  # fmt: skip
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll let's ma'am might've mightn't mightn't've must've mustn't
needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll you'd you'd've you'll you're you've
""".split()


def _misspelt(word: str) -> list[str]:
    """Return the spellings of `word` that lack one or more of its apostrophes."""
    first, *parts = word.split("'")
    every = itertools.product(("'", ""), repeat=len(parts))
    return [first + "".join(j + p for j, p in zip(joints, parts, strict=True)) for joints in every if "" in joints]


SPELLING = {wrong: right for right in CONTRACTIONS for wrong in _misspelt(right)}


class Task(folder.FolderTask):
    binary = False

    def score(self, question: Question, answer: str) -> float:
        given = normalized(answer)
        same = [normalized(a) == given for a in question.answers]
        others = (sum(same) - one for one in same)
        return sum(min(1.0, n / 3) for n in others) / len(same)

    def prompt(self, record: Record, where: str) -> str:
        asked = super().prompt(record, where)
        return f"{asked}\n{folder.SHORTLY}" if record.get("image") is None and "image_id" in record else asked

    def identity(self, record: Record, where: str) -> str:
        return f"{super().identity(record, where)}\n{_asked(self.prompt(record, where))}"

    def keys(self, record: Record, where: str) -> tuple[str, ...]:
        number = text_or_number(record, where, "question_id", "id")
        if "image_id" in record:  # a record of the annotations
            number = text_or_number(record, where, "image_id")
        elif "text" not in record and "question" not in record:
            return (number,)
        return (f"{number}\n{_asked(self.prompt(record, where))}", number)

    def checked(self, questions: list[Question]) -> list[Question]:
        for question in questions:
            if len(question.answers) != ANNOTATORS:
                raise InputError(f"{question.where} has {len(question.answers)} answers; TextVQA has {ANNOTATORS}")
        return questions


def _asked(prompt: str) -> str:
    """Return the question without LLaVA's hint of OCR tokens, which comes before or after it."""
    lines = [line for line in prompt.splitlines() if not line.lower().startswith(HINT)]
    return folder.first_line("\n".join(lines)).lower()


def normalized(answer: str) -> str:
    """Return the normal form of one answer."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.replace("\n", " ").replace("\t", " ").strip()
    given = text
    for mark in PUNCTUATION:
        beside_a_space = f"{mark} " in given or f" {mark}" in given
        text = text.replace(mark, "" if beside_a_space else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = (NUMBERS.get(word, word) for word in text.split())
    return " ".join(SPELLING.get(word, word) for word in words if word not in ARTICLES)
