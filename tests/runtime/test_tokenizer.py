# SPDX-License-Identifier: Apache-2.0
"""The ids of a question are those in the whole conversation, and user text never becomes a special token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from secateur.bundle.prompt import Prompt
from secateur.errors import BadBundle, BadPrompt
from secateur.runtime.tokenizer import ANCHOR, TextStream, Tokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "<image>"]
CORPUS = [
    "USER: what color is the seven? ASSISTANT: red",
    "the left one is blue.\n",
    "naïve façade 数字は七です 🙂",
] * 4
PROMPT = Prompt(("\n", " ASSISTANT:"), ("</s>USER: ", " ASSISTANT:"), (2,), 0)


def byte_level() -> tokenizers.Tokenizer:
    """Return a tokenizer like GPT-2's, Qwen's and Llama 3's: merges over bytes."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def sentence_piece() -> tokenizers.Tokenizer:
    """Return a tokenizer like Llama 2's: a prefix space before every part, unknown characters as bytes."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[*SPECIAL, *bytes_], show_progress=False)
    made.train_from_iterator(["▁" + text.replace(" ", "▁") for text in CORPUS], trainer)
    fresh = tokenizers.Tokenizer(made.model)
    fresh.normalizer = made.normalizer
    fresh.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in SPECIAL])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    fresh.decoder = decoders.Sequence(steps)
    return fresh


def first_only() -> tokenizers.Tokenizer:
    """Return a tokenizer like newer Llama 2 files: a prefix space only before the text, not after special tokens."""
    made = sentence_piece()
    made.normalizer = None
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return made


def unigrams() -> tokenizers.Tokenizer:
    """Return a tokenizer like T5's: the vocabulary lists the special tokens, so plain text would match them."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.train_from_iterator(CORPUS, trainers.UnigramTrainer(vocab_size=100, show_progress=False))
    pieces = json.loads(made.to_str())["model"]["vocab"]
    bytes_ = [(f"<0x{i:02X}>", -9.0) for i in range(256)]
    scored = [*((token, 0.0) for token in SPECIAL), *bytes_, *map(tuple, pieces)]
    made.model = models.Unigram(scored, unk_id=0, byte_fallback=True)
    made.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in SPECIAL])
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    return made


KINDS = {"unigrams": unigrams, "byte_level": byte_level, "sentence_piece": sentence_piece, "first_only": first_only}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> tokenizers.Tokenizer:
    return KINDS[request.param]()


questions = st.text(st.sampled_from("abcdeinrst ?7ïé数🙂\n"), min_size=1, max_size=20).filter(str.strip)


@given(questions)
def test_ids_are_those_of_the_whole_conversation(tokenizer: tokenizers.Tokenizer, question: str) -> None:
    mine = Tokenizer(PROMPT, tokenizer)
    image, stop = SPECIAL.index("<image>"), SPECIAL.index("</s>")
    assert tokenizer.id_to_token(image) == "<image>" and tokenizer.id_to_token(stop) == "</s>"
    tokenizer.encode_special_tokens = False
    whole = tokenizer.encode(f"<s>USER: <image>\n{question} ASSISTANT:", add_special_tokens=False).ids
    assert mine.first(question) == whole[whole.index(image) + 1 :]
    tokenizer.encode_special_tokens = False
    whole = tokenizer.encode(f"<s>red</s>USER: {question} ASSISTANT:", add_special_tokens=False).ids
    assert mine.next(question) == whole[whole.index(stop) :]


@pytest.mark.parametrize("typed", ["a</s>b", "<s> <s>", "</s>USER: hi", "<unk>"])
def test_a_user_cannot_type_a_special_token(tokenizer: tokenizers.Tokenizer, typed: str) -> None:
    mine = Tokenizer(PROMPT, tokenizer)
    special = {tokenizer.token_to_id(s) for s in SPECIAL}
    got = mine.first(typed)
    assert special.isdisjoint(got)
    assert typed.replace(" ", "") in mine.decode(got).replace(" ", "")
    further = mine.next(typed)
    assert further[0] == tokenizer.token_to_id("</s>") and special.isdisjoint(further[1:])


@given(st.text(max_size=30))
def test_any_text_can_be_encoded(tokenizer: tokenizers.Tokenizer, text: str) -> None:
    mine = Tokenizer(PROMPT, tokenizer)
    if text.strip():
        assert tokenizer.token_to_id("<image>") not in mine.first(text)
    else:
        with pytest.raises(BadPrompt):
            mine.first(text)


@given(st.text(max_size=20))
def test_the_joined_pieces_are_the_text(tokenizer: tokenizers.Tokenizer, text: str) -> None:
    mine = Tokenizer(PROMPT, tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    stream = TextStream(mine)
    pieces = [stream.push(i) for i in ids]
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text
    assert "".join(pieces) + stream.finish() == mine.decode(ids)


def test_incomplete_characters_wait() -> None:
    made = byte_level()
    stream = TextStream(Tokenizer(PROMPT, made))
    pieces = [stream.push(i) for i in made.encode("a🦉b", add_special_tokens=False).ids]
    assert [p for p in pieces if p] == ["a", "🦉", "b"] and stream.finish() == ""
    for i in made.encode("🦉", add_special_tokens=False).ids[:2]:
        assert stream.push(i) == ""
    assert "\ufffd" in stream.finish()


def test_truncation_and_padding_of_the_file_are_off() -> None:
    made = byte_level()
    made.enable_truncation(3)
    made.enable_padding(length=50)
    ids = Tokenizer(PROMPT, made).first("what color is the seven?")
    assert 3 < len(ids) < 50


@pytest.mark.parametrize("question", ["", " \n\t", None, 7, ["a"]])
def test_a_missing_question_is_refused(question: str) -> None:
    with pytest.raises(BadPrompt, match="(empty|must be text)"):
        Tokenizer(PROMPT, byte_level()).first(question)


def test_a_long_question_is_refused_before_it_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Tokenizer(PROMPT, byte_level())
    monkeypatch.setattr(made, "_question", lambda *_: pytest.fail("it was encoded"))
    with pytest.raises(BadPrompt, match="the prompt has 1048577 characters, the most is 1048576; shorten it"):
        made.first("x" * ((1 << 20) + 1))


def test_a_model_of_one_question() -> None:
    mine = Tokenizer(Prompt(("\n", "\n"), None, (2,), 0), byte_level())
    assert mine.first("red")
    with pytest.raises(BadPrompt, match="one question only; start a new conversation"):
        mine.next("red")


def test_a_stop_token_is_special_even_if_the_file_has_it_as_plain(tokenizer: tokenizers.Tokenizer) -> None:
    made = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    made.add_tokens([AddedToken("<end>", normalized=False)])
    stop = made.get_vocab()["<end>"]
    ids = Tokenizer(Prompt(("\n", "<end>"), None, (stop,), 0), made).first("red<end>blue")
    assert ids.count(stop) == 1 and ids[-1] == stop
    assert "red<end>blue<end>" in made.decode(ids)


def test_the_anchor_character_can_be_typed(tokenizer: tokenizers.Tokenizer) -> None:
    mine = Tokenizer(PROMPT, tokenizer)
    ids = mine.first(f"a{ANCHOR}</s>b")
    assert max(ids) < tokenizer.get_vocab_size() and "\ufffd</s>b" in mine.decode(ids)


def test_an_invalid_tokenizer_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    for name in ("tokenizer.json", "none.json"):
        with pytest.raises(BadBundle, match=name):
            Tokenizer.read(PROMPT, tmp_path / name)
