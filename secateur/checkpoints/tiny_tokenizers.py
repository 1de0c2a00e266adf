# SPDX-License-Identifier: Apache-2.0
"""Small tokenizers of the usual kinds, trained in memory on a few lines.

words     one id per word: tests can name ids
bytes     byte-level BPE: GPT-2, Llama 3, Qwen, SmolLM
pieces    SentencePiece BPE with a space before the text, unknown characters as bytes: Llama 2, Mistral
bare      the same without that space: Gemma
unigram   SentencePiece unigrams with a space before each word
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

UNKNOWN = "<unk>"
BYTES = [f"<0x{number:02X}>" for number in range(256)]
CORPUS = (
    *(" ".join(f"w{number}" for number in range(start, start + 10)) for start in range(0, 100, 10)),
    "user: what color is the left one?\n\nassistant: the left one is red.\n",
    "User: where is it?\nAssistant: it is on the right, behind the other one.\n",
)


def build(kind: str, special: Sequence[str], vocabulary: int) -> Tokenizer:
    """Return a tokenizer of `kind` with at most `vocabulary` ids; those of `special` come first, in order.

    Raises:
        ValueError: `vocabulary` is too small for the kind.
    """
    made = KINDS[kind](list(special), vocabulary)
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    if made.get_vocab_size() > vocabulary:
        raise ValueError(f"a tokenizer of kind '{kind}' needs {made.get_vocab_size()} ids, got {vocabulary}")
    return made


def _words(special: list[str], vocabulary: int) -> Tokenizer:
    words = [*special, "user", "assistant"]
    words += [f"w{number}" for number in range(vocabulary - len(words))]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def _bytes(special: list[str], vocabulary: int) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def _pieces(special: list[str], vocabulary: int) -> Tokenizer:
    made = _bare(special, vocabulary)
    made.normalizer = None
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence([made.decoder, decoders.Strip(" ", 1, 0)])
    return made


def _bare(special: list[str], vocabulary: int) -> Tokenizer:
    trained = Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[*special, *BYTES], show_progress=False)
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(CORPUS, trainer)
    made = Tokenizer(trained.model)  # the same pieces, but bytes are not special tokens
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


def _unigram(special: list[str], vocabulary: int) -> Tokenizer:
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    room = vocabulary - len(special) - len(BYTES)
    trained.train_from_iterator(CORPUS, trainers.UnigramTrainer(vocab_size=room, show_progress=False))
    pieces = [(piece, score) for piece, score in json.loads(trained.to_str())["model"]["vocab"]]
    scored = [*((token, 0.0) for token in [*special, *BYTES]), *pieces]
    made = Tokenizer(models.Unigram(scored, unk_id=special.index(UNKNOWN), byte_fallback=True))
    made.pre_tokenizer = trained.pre_tokenizer
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    return made


KINDS: dict[str, Callable[[list[str], int], Tokenizer]] = {
    "words": _words,
    "bytes": _bytes,
    "pieces": _pieces,
    "bare": _bare,
    "unigram": _unigram,
}
