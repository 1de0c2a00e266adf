# SPDX-License-Identifier: Apache-2.0
"""Chat templates that change the texts of a conversation: followed, or further questions are refused with the reason.

The oracle is transformers: its rendering of the whole conversation, and `generate` on it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizers

from secateur.bundle.prompt import Prompt, TurnRules
from secateur.bundle.strict_json import read_json, to_json
from secateur.checkpoints import tiny_model
from secateur.errors import BadBundle, BadPrompt
from secateur.families.base import Family
from secateur.families.llava import TEMPLATE
from secateur.runtime.tokenizer import Tokenizer
from tests import checks
from tests.conftest import tiny_family
from tests.model_fixtures.eager import eager
from tests.model_fixtures.processors import CASES, answer, apart, tiny_tokenizer, user, whole

TEXT = "{{ p['text'] }}"
QWEN = tiny_tokenizer("qwen2_5_vl").template or ""
WITHOUT_THOUGHTS = "{{ p['text'].split('</think>')[-1] if m['role'] == 'assistant' else p['text'] }}"
QWEN3 = (  # what a question with the result of a tool does to thoughts before it matters only for that question
    "{% set ns = namespace(last=messages|length - 1) %}{% set end = messages[-1].content[-1].text %}"
    "{% if end.startswith('<tool_response>') and end.endswith('</tool_response>') %}{% set ns.last = 0 %}{% endif %}"
) + QWEN.replace(
    TEXT,
    "{% set content = p['text'] %}{% if m['role'] == 'assistant' and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{% if m['role'] == 'assistant' and ns.last == 0 %}<think>\n\n</think>\n\n{% endif %}{{ content }}",
)
BEGINS_WITH_A_THOUGHT = QWEN.replace(
    "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
)


def qwen(template: str) -> Any:
    """Return a new processor with this template."""
    case = CASES["qwen2_5_vl"]
    made: Any = tiny_model.processor(
        "qwen2_5_vl", tiny_tokenizer("qwen2_5_vl"), case.images(**case.arguments), **case.options
    )
    made.chat_template = template
    return made


def rules(template: str) -> Prompt:
    assert template != QWEN
    return apart(qwen(template), "qwen2_5_vl").prompt


def thinking(suppressed: list[int]) -> Family:
    """Return the tiny LLaVA with words for thoughts, and a template that removes these from earlier answers."""
    family = tiny_family("llava")
    known = family.tokenizer.backend_tokenizer.to_str()
    for word, new in (("w40", "<think>"), ("w41", "</think>")):
        known = known.replace(f'"{word}"', f'"{new}"')
    family.tokenizer._tokenizer = tokenizers.Tokenizer.from_str(known)
    family.processor.chat_template = TEMPLATE.replace(TEXT, WITHOUT_THOUGHTS)
    family.model.generation_config.suppress_tokens = [0, 1, 3, 4, *suppressed]
    family.model.generation_config.max_new_tokens = 6
    return family


def test_an_answer_with_a_thought_ends_the_conversation(tmp_path: Path) -> None:
    """Without thoughts, three turns equal transformers."""
    silent = thinking([47, 48])
    with eager(silent, tmp_path / "silent") as vlm:
        assert silent.prompt.answer.rewritten == ("</think>",)
        checks.check_conversation(vlm, silent, [checks.QUESTION, checks.LONGER, "w2"])
    loud = thinking([])
    with eager(loud, tmp_path / "loud") as vlm, vlm.open(checks.given(checks.pictures(loud, 0))) as chat:
        first = chat.ask(checks.QUESTION)
        assert "</think>" in first.text
        room = chat.room
        with pytest.raises(BadPrompt, match="rewrites an earlier answer that contains '</think>'.*a new conversation"):
            chat.ask(checks.LONGER)
        assert chat.room == room


def test_what_transformers_shows_of_a_thought() -> None:
    """The reason for the refusal above: transformers shows other rows than the cache has."""
    said = "<think>a\n</think>\n\nb"
    ids = whole(qwen(QWEN3), "qwen2_5_vl", [user("w1", 1), answer(said), user("w2")])
    assert ids == whole(qwen(QWEN), "qwen2_5_vl", [user("w1", 1), answer("b"), user("w2")])
    assert rules(QWEN3).answer == TurnRules(rewritten=("</think>",))
    assert rules(QWEN3).question == TurnRules(rewritten=("<tool_response>",))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (BEGINS_WITH_A_THOUGHT, "shows an earlier turn otherwise than the last one"),
        ("{{ messages|length }}" + QWEN, "shows an earlier turn otherwise than the last one"),
        ("{{ 'long' if messages|length > 3 }}" + QWEN, "shows the second question otherwise than later or earlier"),
        ("{% if messages|length > 1 %}{{ raise_exception('one') }}{% endif %}" + QWEN, "does not render further ones"),
        (
            QWEN.replace(TEXT, "{{ p['text'] if messages|length == 1 else p['text']|trim }}"),
            "shows the second question",
        ),
    ],
)
def test_one_question_if_the_template_changes_earlier_turns(template: str, reason: str) -> None:
    made = qwen(template)
    prompt = apart(made, "qwen2_5_vl").prompt
    mine = Tokenizer(prompt, made.tokenizer.backend_tokenizer)
    talk = apart(made, "qwen2_5_vl")
    assert [*talk.head_ids, *mine.first("w1 w2")] == whole(made, "qwen2_5_vl", [user("w1 w2", 1)])
    with pytest.raises(BadPrompt, match=rf"one question only \(its chat template {reason}.*new conversation"):
        mine.next("w2")


@pytest.mark.parametrize("call", ["strip()", "strip('\n')", "lstrip()", "rstrip(' ')", "strip('\n ')"])
def test_white_space_around_questions_is_trimmed_as_the_template_does(call: str) -> None:
    made = qwen(QWEN.replace(TEXT, f"{{{{ p['text'].{call} }}}}".replace("\n", "\\n")))
    talk = apart(made, "qwen2_5_vl")
    mine = Tokenizer(talk.prompt, made.tokenizer.backend_tokenizer)
    assert talk.prompt.question.trimmed == talk.prompt.answer.trimmed != ("", "")
    for question in ("w1", " w1", "w1\n", "\n \tw1 \n", "\u3000w1 w2\u00a0\n\n", "a\n\nb \n"):
        assert [*talk.head_ids, *mine.first(question)] == whole(made, "qwen2_5_vl", [user(question, 1)]), repr(question)
        turns = [user("w1", 1), answer("w2"), user(question)]
        further = mine.next(question)
        assert further == whole(made, "qwen2_5_vl", turns)[-len(further) :], repr(question)


def test_an_answer_with_white_space_that_the_template_removes() -> None:
    made = qwen(QWEN.replace(TEXT, "{{ p['text'] | trim }}"))
    mine = Tokenizer(apart(made, "qwen2_5_vl").prompt, made.tokenizer.backend_tokenizer)
    encode = made.tokenizer.backend_tokenizer.encode
    mine.check_repeated(encode("a b", add_special_tokens=False).ids)
    for said in ("a\n", " a", "\n\na"):
        with pytest.raises(BadPrompt, match="removes white space around an earlier answer"):
            mine.check_repeated(encode(said, add_special_tokens=False).ids)


def test_white_space_that_the_template_shows_itself() -> None:
    """LLaVA's template shows a space before an earlier answer, with which the answer began."""
    template = QWEN.replace(
        TEXT, "{% if m['role'] == 'assistant' %} {{ p['text'] | trim }}{% else %}" + TEXT + "{% endif %}"
    )
    made = qwen(template)
    prompt = apart(made, "qwen2_5_vl").prompt
    assert prompt.gap == " " and prompt.question == TurnRules()
    mine = Tokenizer(prompt, made.tokenizer.backend_tokenizer)
    ids = made.tokenizer.backend_tokenizer.encode(" a", add_special_tokens=False).ids
    mine.check_repeated(ids)
    turns = [user("w1", 1), answer(" a"), user("w2")]
    whole_ids = whole(made, "qwen2_5_vl", turns)
    tail = [*mine.first("w1"), *ids, *mine.next("w2")]
    assert whole_ids[-len(tail) :] == tail


@pytest.mark.parametrize(
    ("shown", "rewritten"),
    [
        ("{{ p['text'].replace('<b>', '') }}", "<b>"),
        ("{{ '' if p['text'].startswith('<call>') else p['text'] }}", "<call>"),
        ("{{ '' if p['text'].startswith('<call>') and p['text'].endswith('</call>') else p['text'] }}", "<call>"),
        ("{{ p['text'].replace('\\n', ' ') }}", "\n"),
        ("{{ raise_exception('no') if '[BAD]' in p['text'] else p['text'] }}", "[BAD]"),
    ],
)
def test_texts_that_the_template_rewrites(shown: str, rewritten: str) -> None:
    made = qwen(QWEN.replace(TEXT, shown))
    prompt = apart(made, "qwen2_5_vl").prompt
    assert rewritten in prompt.question.rewritten and rewritten in prompt.answer.rewritten
    mine = Tokenizer(prompt, made.tokenizer.backend_tokenizer)
    for ask in (mine.first, mine.next):
        ask("w1 w2")
        with pytest.raises(BadPrompt, match="rewrites a question that contains .*; leave it out"):
            ask(f"w1{rewritten}w2")


def test_the_rules_are_in_the_file(tmp_path: Path) -> None:
    prompt = rules(QWEN3.replace("{{ content }}", "{{ content | trim }}"))
    assert " " in prompt.answer.trimmed[0] and "\u3000" in prompt.answer.trimmed[1]
    (tmp_path / "prompt.json").write_text(to_json(prompt))
    assert read_json(Prompt, tmp_path / "prompt.json", BadBundle) == prompt
    old = '{"first": ["", ""], "next": null, "stop": [2], "pad": 0}'
    (tmp_path / "prompt.json").write_text(old)
    assert read_json(Prompt, tmp_path / "prompt.json", BadBundle) == Prompt(("", ""), None, (2,), 0)
    (tmp_path / "prompt.json").write_text(old[:-1] + ', "schema": 3}')
    with pytest.raises(BadBundle, match="prompt has schema 3, this version reads up to 2; install a newer one"):
        read_json(Prompt, tmp_path / "prompt.json", BadBundle)
