# SPDX-License-Identifier: Apache-2.0
"""Chat templates and processors that cannot be used are refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from secateur.checkpoints import load_processor, tiny_model, tiny_tokenizers
from secateur.checkpoints.chat_template import check_image_tokens, check_vocabulary, conversation
from secateur.errors import BadModel
from secateur.families.llava import TEMPLATE
from tests.model_fixtures.processors import CASES, apart, processor, tiny_tokenizer

QUESTION_FIRST = (
    "{% for m in messages %}{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }}{% endfor %}"
    "{% for p in m['content'] if p['type'] == 'image' %}<image>{% endfor %}{% endfor %}"
)
GOOD = TEMPLATE
TEMPLATES = {
    "after the last '<image>'": QUESTION_FIRST,
    "'<image>' 0 times for 1": GOOD.replace("<image>", ""),
    "'<image>' 2 times for 1": GOOD.replace("<image> ", "<image> <image> "),
    "show the question once": GOOD.replace("{{ p['text'] }}", ""),
    "each turn once": GOOD.replace("{% for m in messages %}", "{% for m in messages[-1:] %}").replace(
        "{% if add_generation_prompt %}", "{% if add_generation_prompt %}{% if messages|length > 1 %}{% endif %}"
    ),
    "changes the first turn": "{{ messages|length }}" + GOOD,
    "message parts as they are": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    "cannot be rendered \\(no": "{{ raise_exception('no') }}",
    "cannot be rendered": "{% for %}",
    "no chat template; add chat_template.jinja": None,
}


def fresh() -> Any:
    """A new processor, which a test may change."""
    case = CASES["llava"]
    return tiny_model.processor("llava", tiny_tokenizer("llava"), case.images(**case.arguments), **case.options)


@pytest.mark.parametrize("said", TEMPLATES)
def test_bad_templates(said: str) -> None:
    made = fresh()
    made.chat_template = TEMPLATES[said]
    with pytest.raises(BadModel, match=said) as caught:
        apart(made, "llava")
    assert "\n" not in str(caught.value)


def test_a_template_without_a_system_prompt() -> None:
    made = fresh()
    made.chat_template = GOOD.replace("in messages %}", "in messages if m['role'] != 'system' %}")
    apart(made, "llava")
    with pytest.raises(BadModel, match="does not show a system prompt"):
        apart(made, "llava", system="w1")


def test_the_tokenizers_template_is_used_too() -> None:
    made = fresh()
    made.tokenizer.chat_template, made.chat_template = made.chat_template, None
    assert apart(made, "llava") == apart(processor("llava"), "llava")


def test_processors_that_do_not_fit_the_model() -> None:
    made = processor("llava")
    with pytest.raises(BadModel, match=r"image token '<image>' is 3 in the tokenizer, 4 in the model"):
        conversation(made, 4, (24, 24), (2,))
    with pytest.raises(BadModel, match="no token ends an answer"):
        apart(made, "llava", stop=())
    case = CASES["llava"]
    half: Any = tiny_model.processor("llava", tiny_tokenizer("llava"), case.images(**case.arguments), vocabulary=64)
    with pytest.raises(BadModel, match=r"cannot prepare 1 image\(s\) of 24x24 .*correct processor_config.json"):
        apart(half, "llava")


def test_vocabularies() -> None:
    tokenizer = processor("llava").tokenizer
    check_vocabulary(tokenizer, len(tokenizer), 3)
    with pytest.raises(BadModel, match="ids up to 511, the model embeddings for 511;"):
        check_vocabulary(tokenizer, len(tokenizer) - 1, 3)
    with pytest.raises(BadModel, match="image token 512 is not in the tokenizer, whose ids end at 511"):
        check_vocabulary(tokenizer, 1000, 512)


def test_image_tokens() -> None:
    check_image_tokens(36, 36)
    with pytest.raises(BadModel, match="makes 35 image tokens, the model 36 vision tokens"):
        check_image_tokens(35, 36)


def test_an_image_token_that_a_user_could_type() -> None:
    case = CASES["llava"]
    tokens = tiny_tokenizers.build("bytes", ["<s>", "</s>"], 300)
    tokens.add_tokens(["<image>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>", eos_token="</s>")
    images = case.images(**case.arguments)
    made: Any = load_processor.build("llava", images, tokenizer, chat_template=TEMPLATE, **case.options)
    with pytest.raises(BadModel, match='must be a special token .*set "special": true'):
        apart(made, "llava")


def test_a_tokenizer_that_ends_every_text() -> None:
    """transformers would put the end token after the question; the model then answers nothing."""
    made = fresh()
    made.chat_template = GOOD.replace("{{ bos_token }}", "")
    made.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    with pytest.raises(BadModel, match="does not split a prompt"):
        apart(made, "llava")


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ("be brief </s> user", "contains '</s>', which would become a special token; leave it out"),
        ("see <image>", "contains '<image>', which would become a special token"),
        ("FIRSTQUESTION", "contains 'FIRSTQUESTION', which would become a special token"),
        ("be \udcff", "the system prompt is not valid UTF-8"),
    ],
)
def test_a_system_prompt_is_text(system: str, message: str) -> None:
    with pytest.raises(BadModel, match=message):
        apart(fresh(), "llava", system=system)
