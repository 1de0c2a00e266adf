# SPDX-License-Identifier: Apache-2.0
"""Conversations encoded from the parts of a prompt equal those of transformers' own processors.

Chat templates and processors that cannot be used are refused in one line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoProcessor,
    GemmaTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    processing_utils,
)
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from secateur.checkpoints import load_processor, tiny_model, tiny_tokenizers
from secateur.checkpoints.chat_template import ChatTemplate, check_image_tokens, check_vocabulary, conversation
from secateur.demo import model_directory
from secateur.errors import BadModel, SecateurWarning
from secateur.families.llava import TEMPLATE
from secateur.runtime.tokenizer import Tokenizer
from tests.model_fixtures.processors import (
    CASES,
    TYPED,
    answer,
    apart,
    processor,
    questions,
    tiny_tokenizer,
    user,
    whole,
)

PATCHED = ("VideoProcessorMixin", "num2words")
OTHER_TOKENS = [("llava", "pieces"), ("llava", "bare"), ("llava", "unigram"), ("qwen2_vl", "unigram")]
KINDS = [*((family, None) for family in CASES), *OTHER_TOKENS]
QUESTION_FIRST = (
    "{% for m in messages %}{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }}{% endfor %}"
    "{% for p in m['content'] if p['type'] == 'image' %}<image>{% endfor %}{% endfor %}"
)
TEMPLATES = {
    "after the last '<image>'": QUESTION_FIRST,
    "'<image>' 0 times for 1": TEMPLATE.replace("<image>", ""),
    "'<image>' 2 times for 1": TEMPLATE.replace("<image> ", "<image> <image> "),
    "show the question once": TEMPLATE.replace("{{ p['text'] }}", ""),
    "each turn once": TEMPLATE.replace("{% for m in messages %}", "{% for m in messages[-1:] %}").replace(
        "{% if add_generation_prompt %}", "{% if add_generation_prompt %}{% if messages|length > 1 %}{% endif %}"
    ),
    "message parts as they are": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    "cannot be rendered \\(no": "{{ raise_exception('no') }}",
    "cannot be rendered": "{% for %}",
    "no chat template; add chat_template.jinja": None,
}


def device(made: Any, talk: ChatTemplate, folder: Path) -> Tokenizer:
    made.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return Tokenizer.read(talk.prompt, folder / "tokenizer.json")


@pytest.mark.parametrize(("family", "tokens"), KINDS)
def test_questions_get_the_ids_of_the_whole_conversation(family: str, tokens: str | None, tmp_path: Path) -> None:
    made = processor(family, tokens)
    talk = apart(made, family)
    mine = device(made, talk, tmp_path)
    asked = questions()
    assert len(asked) == 200
    for question in asked:
        assert [*talk.head_ids, *mine.first(question)] == whole(made, family, [user(question, 1)]), repr(question)
    for question in asked[::4] if talk.prompt.next else []:
        further = mine.next(question)
        turns = [user("w1", 1), answer("w2"), user(question)]
        assert further == whole(made, family, turns)[-len(further) :], repr(question)


@pytest.mark.parametrize(("family", "tokens"), [*KINDS, ("qwen2_vl", "words")])
def test_a_user_cannot_type_a_special_token(family: str, tokens: str | None, tmp_path: Path) -> None:
    made = processor(family, tokens)
    talk = apart(made, family)
    mine = device(made, talk, tmp_path)
    special = {i for i, token in made.tokenizer.added_tokens_decoder.items() if token.special}
    special -= {made.tokenizer.unk_token_id}
    ask = [mine.first] if talk.prompt.next is None else [mine.first, mine.next]
    for question in TYPED:
        for encode in ask:
            ids = encode(question)
            assert [i for i in ids if i in special] == [i for i in encode("w1") if i in special], question
            if "words" not in (tokens, tiny_tokenizer(family).tokens):
                assert question in made.tokenizer.decode(ids)


# transformers cannot do this if the processor counts tokens by characters (Idefics3), if the image token is typed
# (InternVL), or if the vocabulary contains the text (words, unigrams).
@pytest.mark.parametrize("family", sorted(set(CASES) - {"llava", "idefics3", "paligemma"}))
def test_typed_special_tokens_get_the_ids_that_transformers_gives_to_text(family: str) -> None:
    made = processor(family)
    talk = apart(made, family)
    mine = Tokenizer(talk.prompt, made.tokenizer.backend_tokenizer)
    for question in TYPED:
        content = [{"type": "image", "image": Image.new("RGB", CASES[family].size[::-1])}, user(question)["content"][0]]
        wanted = made.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            sanitize_control_tokens=True,
        )
        assert [*talk.head_ids, *mine.first(question)] == list(wanted["input_ids"][0]), question


@pytest.mark.parametrize("images", [1, 2, 3])
@pytest.mark.parametrize("family", CASES)
def test_images_and_system_prompt(family: str, images: int) -> None:
    made = processor(family)
    if family == "paligemma":
        with pytest.raises(BadModel, match="no chat template, so it takes no system prompt"):
            apart(made, family, images=images, system="w7 w8")
        system, messages = "", []
    else:
        system = "w7 w8"
        messages = [{"role": "system", "content": [{"type": "text", "text": system}]}]
    talk = apart(made, family, images=images, system=system)
    ids = whole(made, family, [*messages, user("w1", images)], images)
    mine = Tokenizer(talk.prompt, made.tokenizer.backend_tokenizer)
    assert [*talk.head_ids, *mine.first("w1")] == ids
    assert talk.head_ids[-1] == made.image_token_id not in mine.first("w1")
    # With several images, each is one tile and a newline in LLaVA-OneVision.
    each = 37 if family == "llava_onevision" and images > 1 else CASES[family].tokens
    assert talk.head_ids.count(made.image_token_id) == images * each
    assert system in made.tokenizer.decode(talk.head_ids)


@pytest.mark.parametrize("family", CASES)
def test_a_saved_processor_has_the_same_conversation(family: str, tmp_path: Path) -> None:
    made = processor(family)
    made.save_pretrained(tmp_path)
    again = load_processor.read(family, str(tmp_path))
    assert type(again) is type(made)
    assert apart(again, family, images=2) == apart(made, family, images=2)
    if not hasattr(made, "video_processor"):  # with one, transformers wants torchvision
        assert apart(AutoProcessor.from_pretrained(tmp_path), family) == apart(made, family)


def test_videos_are_refused_and_patches_are_undone() -> None:
    modules: list[Any] = [processing_utils.__dict__["transformers_module"], processing_smolvlm]
    before = [dict(vars(module)).get(name) for module, name in zip(modules, PATCHED, strict=True)]
    made: Any = tiny_model.processor("smolvlm", tiny_tokenizer("smolvlm"), SmolVLMImageProcessorPil(), image_seq_len=4)
    with pytest.raises(BadModel, match="videos are not supported"):
        made.video_processor([])
    assert before == [dict(vars(module)).get(name) for module, name in zip(modules, PATCHED, strict=True)]


def test_the_demo_keeps_its_ids() -> None:
    made: Any = load_processor.read("llava", str(model_directory()))
    talk = conversation(made, made.image_token_id, (96, 96), (2,))
    words = made.tokenizer.convert_ids_to_tokens(talk.head_ids)
    assert words == ["<s>", "user", ":", *["<image>"] * 144]
    assert talk.prompt.first == ("\n", " ASSISTANT:") and talk.prompt.next == ("</s>USER: ", " ASSISTANT:")
    assert (talk.prompt.stop, talk.prompt.pad) == ((2,), 0)


@pytest.mark.parametrize(
    ("cls", "kind", "special"),
    [
        (LlamaTokenizer, "pieces", ["<unk>", "<s>", "</s>"]),
        (Qwen2Tokenizer, "bytes", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
        (GemmaTokenizer, "bare", ["<pad>", "<eos>", "<bos>", "<unk>"]),
    ],
)
def test_the_decoders_own_tokenizer_classes(cls: Any, kind: str, special: list[str], tmp_path: Path) -> None:
    """Their normalizers, splits and post-processors, over small vocabularies."""
    model = json.loads(tiny_tokenizers.build(kind, special, 512).to_str())["model"]
    tokenizer = cls(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    case = CASES["llava_next"]
    images, template = case.images(**case.arguments), tiny_tokenizer("llava_next").template
    made: Any = load_processor.build("llava_next", images, tokenizer, chat_template=template, **case.options)
    talk = apart(made, "llava_next")
    mine = device(made, talk, tmp_path)
    for question in questions():
        assert [*talk.head_ids, *mine.first(question)] == whole(made, "llava_next", [user(question, 1)]), question
    for question in ("</s>", "a<|im_end|>", "<eos>"):
        assert question in tokenizer.decode(mine.first(question))
        assert made.image_token_id not in mine.first(question)


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
    made.chat_template = TEMPLATE.replace("in messages %}", "in messages if m['role'] != 'system' %}")
    apart(made, "llava")
    with pytest.raises(BadModel, match="does not show a system prompt"):
        apart(made, "llava", system="w1")


def test_a_date_is_said_to_stay() -> None:
    made = fresh()
    made.chat_template = TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }}{{ strftime_now('%Y') }}")
    with pytest.warns(SecateurWarning, match="a bundle keeps that of its export"):
        apart(made, "llava")


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
    made.chat_template = TEMPLATE.replace("{{ bos_token }}", "")
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
