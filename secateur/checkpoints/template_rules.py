# SPDX-License-Identifier: Apache-2.0
"""Find out, by rendering a chat template, what it does to the texts of a conversation beside showing them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jinja2

from secateur.bundle.prompt import TurnRules
from secateur.errors import BadModel

# Placeholders that occur in no template and no system prompt.
QUESTION, ANSWER, FURTHER, LATER, LAST = "FIRSTQUESTION", "FIRSTANSWER", "NEXTQUESTION", "NEXTANSWER", "LASTQUESTION"
Say = Callable[..., str]
"""Renders the texts of a conversation: question, answer, question, ... up to where the next answer begins."""
SPACES = "".join(c for c in map(chr, range(0x3001)) if c.isspace())
THOUGHT = ("<think>", "</think>")
MOST_LITERALS, LONGEST_LITERAL = 200, 64


@dataclass(frozen=True)
class FurtherTurns:
    """Further turns of a conversation, see `bundle.prompt.Prompt`."""

    next: tuple[str, str] | None
    one_question: str
    question: TurnRules
    answer: TurnRules
    gap: str


def further_turns(say: Say, source: str) -> FurtherTurns:
    """Return how the template with the text `source` shows further turns, and what it does to their texts.

    Raises:
        BadModel: it does not show each turn once and in order.
    """
    opening, literals = say(QUESTION), _literals(source)
    question = _rules(say, QUESTION, literals)
    try:
        chat, longest = say(QUESTION, ANSWER, FURTHER), say(QUESTION, ANSWER, FURTHER, LATER, LAST)
    except BadModel:
        reason = "its chat template does not render further ones"
        return FurtherTurns(None, reason, question, TurnRules(), "")
    turns = [chat.find(text) for text in (QUESTION, ANSWER, FURTHER)]
    if -1 in turns or turns != sorted(turns) or any(chat.count(t) != 1 for t in (QUESTION, ANSWER, FURTHER)):
        raise BadModel("the chat template must show each turn once and in order; correct chat_template.jinja")
    before, _, after = chat.partition(ANSWER)
    start, _, end = after.partition(FURTHER)
    gap = before.removeprefix(opening)
    if not before.startswith(opening) or gap.strip():
        reason = "its chat template shows an earlier turn otherwise than the last one"
        return FurtherTurns(None, reason, question, TurnRules(), "")
    longer = f"{chat}{gap}{LATER}{start}{LAST}{end}"
    later = _rules(lambda text: say(QUESTION, ANSWER, text), FURTHER, literals)
    if longest != longer or later.trimmed != question.trimmed:
        reason = "its chat template shows the second question otherwise than later or earlier ones"
        return FurtherTurns(None, reason, question, TurnRules(), "")
    question = TurnRules(question.trimmed, tuple(dict.fromkeys((*question.rewritten, *later.rewritten))))
    answer = _rules(lambda text: say(QUESTION, text, FURTHER), ANSWER, literals)
    return FurtherTurns((start, end), "", question, answer, gap)


def _rules(say: Callable[[str], str], place: str, literals: list[str]) -> TurnRules:
    """Return what happens to a text: `say` renders a conversation with the text, whose name is `place`."""
    around = say(place)

    def shown(text: str) -> str | None:
        try:
            return say(text)
        except BadModel:  # the template refuses the text
            return None

    trimmed = (_removed(lambda c: shown(c + place) == around), _removed(lambda c: shown(place + c) == around))
    trim, rewritten = TurnRules(trimmed).trim, list[str]()

    def same(text: str) -> bool:
        return shown(text) == around.replace(place, trim(text))

    for literal in literals:
        if any(part in literal for part in rewritten):
            continue
        if not same(f"{place}{literal}{place}") or (literal.strip() and not same(f"{literal}{place}{literal}")):
            rewritten.append(literal)
    for first in literals:
        last = first.replace(first[0], f"{first[0]}/", 1)
        if first not in rewritten and last not in rewritten and last in literals:
            if not (same(f"{first}{place}{last}") and same(f"{first}{place}{last}{place}")):
                rewritten.append(first)
    return TurnRules(trimmed, tuple(rewritten))


def _removed(removes: Callable[[str], bool]) -> str:
    """Return the white space that `removes` accepts at one end of a text."""
    usual = "".join(c for c in " \n\t\r" if removes(c))
    return SPACES if usual and removes(SPACES) else usual


def _literals(source: str) -> list[str]:
    """Return the texts that the template names, which it may look for in a message, and those of a thought."""
    found = list(THOUGHT)
    for _, kind, text in jinja2.Environment().lex(source):
        if kind == "string":
            literal = text[1:-1]
            for escaped, character in (("\\n", "\n"), ("\\t", "\t"), ("\\'", "'"), ('\\"', '"')):
                literal = literal.replace(escaped, character)
            if literal and not literal.isidentifier() and len(literal) <= LONGEST_LITERAL:
                found.append(literal)
    return list(dict.fromkeys(found))[:MOST_LITERALS]
