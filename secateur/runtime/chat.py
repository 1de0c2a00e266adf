# SPDX-License-Identifier: Apache-2.0
"""Questions and answers about a batch of images that share one KV cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from secateur.bundle.layout import Ints
from secateur.bundle.sampling import Sampling
from secateur.errors import InputError
from secateur.runtime.cache import KVCache
from secateur.runtime.chain import Chain, Walk
from secateur.runtime.decoder_inputs import EncodedImages, TokenBatch
from secateur.runtime.preprocess import Fitted
from secateur.runtime.prompt_limits import answer_length
from secateur.runtime.receipt import Answer, GateReceipt, Receipt, Stopwatch
from secateur.runtime.sampling import Sampler, merge
from secateur.runtime.tokenizer import TextStream, Tokenizer, before_stop

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from secateur.runtime.sampling import SamplingOptions


class Chat:
    """Questions about the same images, which stay in the KV cache with all earlier turns.

    Made by `Pipeline.open`. Gates choose vision tokens for the first question, and all questions use these. Close it
    when done, or use `with`.

    encoded   vision tokens of each sample's images, or of one sample that the whole batch shares
    fitted    how the images of each sample were fitted to the canvas
    capacity  cache rows of the whole chat, before any gate; None: the rows of the first turn
    watch     has the time already spent on the images
    check     called before each follow-up question
    """

    def __init__(
        self,
        chain: Chain,
        tokenizer: Tokenizer,
        encoded: EncodedImages,
        fitted: Sequence[tuple[Fitted, ...]],
        schedule: str,
        capacity: int | None,
        watch: Stopwatch,
        check: Callable[[], None],
    ) -> None:
        self._check_files = check
        self.chain, self.tokenizer, self.schedule, self.capacity = chain, tokenizer, schedule, capacity
        self.turn: Turn | None = None
        self.gates: tuple[GateReceipt, ...] = ()
        self.kept: tuple[Ints, ...] = ()
        self._encoded, self.fitted, self._watch = encoded, tuple(fitted), watch
        self._cache: KVCache | None = None
        self._closed = False

    @property
    def room(self) -> int:
        """Number of free cache rows for questions and answers; 0 after `close`."""
        if self._closed:
            return 0
        if self._cache is not None:
            return self._cache.room()
        return max(0, (self.capacity or 0) - self.chain.manifest.layout.rows)

    def ask(self, prompt: str, *, sampling: Sampling | None = None, **options: Unpack[SamplingOptions]) -> Answer:
        """Answer the next question; `sampling` and options are those of `Pipeline.ask`.

        Raises:
            BadPrompt: the question is empty or does not fit; the chat is unchanged.
            InputError: an option is out of bounds, or the chat is closed.
            UnknownName: there is no such option.
        """
        return self.begin([prompt], sampling, options).answers()[0]

    def stream(
        self, prompt: str, *, sampling: Sampling | None = None, **options: Unpack[SamplingOptions]
    ) -> Iterator[str]:
        """Yield the answer to the next question in pieces; options and errors are those of `ask`.

        Tokens that were not consumed are not added to the chat.
        """
        return self.begin([prompt], sampling, options).text()

    def begin(
        self, questions: Sequence[str], sampling: Sampling | None = None, options: SamplingOptions | None = None
    ) -> Turn:
        """Run the prefill of one question per sample; iterate over the returned turn to generate the answers.

        Raises:
            BadPrompt: a question is empty, or the cache or the model's context is too small; or the chat template
                changes an earlier answer. The chat is unchanged.
            InputError: an option is out of bounds, or the chat is closed.
            BadBundle: a file of the bundle was changed or replaced after it was loaded.
        """
        chosen = merge(self.tokenizer.prompt.sampling if sampling is None else sampling, options or {})
        given = sampling is not None or "max_new_tokens" in (options or {})
        if self._closed:
            raise InputError("this chat is closed; open a new one")
        cache, turn, watch = self._cache, self.turn, Stopwatch()
        if cache is None or turn is None:
            watch = self._watch  # device times are added at the next synchronization
            layout, pad = self.chain.manifest.layout, self.tokenizer.prompt.pad
            tails = [self.tokenizer.first(q) for q in questions]
            before = [[*layout.ids(self.tokenizer.image_id), *tail] for tail in tails]
            rows = TokenBatch.prompt(layout, tails, pad)
            limits = [n for n in (self.capacity, self.chain.backend.most_rows) if n is not None]
            new = answer_length(self.chain, rows, chosen, given, min(limits, default=None), layout.rows)
            needed = rows.input_ids.shape[1] + new
            cache = self.chain.cache(len(self.fitted), self.capacity or needed, self.schedule)
            walk = self.chain.prefill(rows, self._encoded, self.schedule, cache, watch)
            self._cache, self.gates, self.kept = cache, walk.gates, walk.kept
        else:
            self._check_files()
            further = [self.tokenizer.next(q) for q in questions]
            for answer in turn.answered:
                self.tokenizer.check_repeated(answer)
            before = [[*b, *a, *q] for b, a, q in zip(turn.before, turn.answered, further, strict=True)]
            tails = [[*u, *q] for u, q in zip(turn.not_cached(cache.position), further, strict=True)]
            rows = TokenBatch.pad(tails, self.tokenizer.prompt.pad, cache.position)
            new = answer_length(self.chain, rows, chosen, given, cache.room())
            walk = self.chain.extend(rows, cache, watch)
        self.turn = Turn(self, cache, rows, walk, replace(chosen, max_new_tokens=new), watch, before)
        return self.turn

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the chat and release its cache for reuse.

        After a failed or unfinished answer the cache is not reused, because it may contain NaN.
        """
        if self._cache is not None and self.turn is not None and self.turn.ended:
            self.chain.give_back(self._cache)
        self._cache, self.turn, self._closed = None, None, True


class Turn:
    """One question per sample; iterating generates the answers token by token.

    before  ids of each sample's rows before the answer, with those of dropped vision tokens
    """

    def __init__(
        self,
        chat: Chat,
        cache: KVCache,
        rows: TokenBatch,
        walk: Walk,
        sampling: Sampling,
        watch: Stopwatch,
        before: list[list[int]],
    ) -> None:
        self.tokens: list[list[int]] = [[] for _ in rows.lengths]
        self.before = before
        self._chat, self._cache, self._rows, self._walk, self._watch = chat, cache, rows, walk, watch
        self._sampling = sampling
        self._start = cache.position
        self._steps = 0
        self.ended = False

    def __iter__(self) -> Iterator[list[int | None]]:
        """Yield the next token of each sample, None for a sample that has ended."""
        tokenizer, prompt = self._chat.tokenizer, self._chat.tokenizer.prompt
        samplers = [Sampler(self._sampling, prompt.stop, ids) for ids in self.before]
        live = [True] * len(samplers)
        logits = self._walk.logits
        for step in range(self._sampling.max_new_tokens):
            if step:
                if self._chat.turn is not self:
                    raise InputError("a new question was asked before this answer ended, so it cannot continue")
                fed = [tokens[-1:] if alive else [] for tokens, alive in zip(self.tokens, live, strict=True)]
                rows = TokenBatch.pad(fed, prompt.pad, self._cache.position)
                with self._watch("decode"):
                    logits = self._chat.chain.step(rows, self._cache)
                self._steps += 1
            new = [s.pick(row) if alive else None for s, row, alive in zip(samplers, logits, live, strict=True)]
            for b, token in enumerate(new):
                if token is not None:
                    self.tokens[b].append(token)
                    said = tokenizer.stops(self.before[b], self.tokens[b], self._sampling.stop_strings)
                    live[b] = token not in prompt.stop and not said
            self.ended = not any(live) or step + 1 == self._sampling.max_new_tokens
            yield new
            if self.ended:
                return

    def text(self) -> Iterator[str]:
        """Yield the answer of the only sample in pieces."""
        stream = TextStream(self._chat.tokenizer, self._sampling.stop_strings)
        for (token,) in self:
            if token is not None and token not in self._chat.tokenizer.prompt.stop and (piece := stream.push(token)):
                yield piece
        if piece := stream.finish():
            yield piece

    def answers(self) -> list[Answer]:
        """Generate all tokens and return one answer per sample."""
        for _ in self:
            pass
        return [self._answer(b) for b in range(len(self.tokens))]

    @property
    def answered(self) -> list[list[int]]:
        """The generated tokens of each sample without stop tokens."""
        stop = self._chat.tokenizer.prompt.stop
        return [[t for t in tokens if t not in stop] for tokens in self.tokens]

    def not_cached(self, position: Ints) -> list[list[int]]:
        """Return the generated tokens of each sample after cache position `position` [B], without stop tokens."""
        return [tokens[n:] for tokens, n in zip(self.answered, position - self._start, strict=True)]

    def _answer(self, b: int) -> Answer:
        chat, tokens = self._chat, self.tokens[b]
        text = before_stop(chat.tokenizer.decode(self.answered[b]), self._sampling.stop_strings)
        receipt = Receipt(
            schedule=chat.schedule,
            image_size=chat.chain.manifest.layout.size,
            images=chat.fitted[b],
            gates=chat.gates,
            segment_rows=self._walk.segment_rows,
            cache_bytes=self._cache.bytes,
            prompt_rows=int(self._rows.lengths[b]),
            generated_tokens=len(tokens),
            milliseconds=self._milliseconds(),
            sampling=self._sampling,
        )
        kept = tuple(tuple(int(i) for i in indices[b]) for indices in chat.kept)
        return Answer(text, tuple(tokens), kept, receipt, self._walk.logits[b])

    def _milliseconds(self) -> dict[str, float]:
        spent = dict(self._watch.milliseconds)
        decode = spent.pop("decode", 0.0)
        first = sum(spent.get(stage, 0.0) for stage in ("preprocess", "encode", "prefill"))
        per_token = decode / self._steps if self._steps else 0.0
        return spent | {
            "first_token": first, "decode": decode, "decode_per_token": per_token, "total": first + decode
        }  # fmt: skip
