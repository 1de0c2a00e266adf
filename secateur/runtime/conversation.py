# SPDX-License-Identifier: Apache-2.0
"""Questions and answers on a batch of images that share one cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from secateur.errors import BadPrompt, InputError
from secateur.runtime.cache import KVCache, no_room
from secateur.runtime.canvas import Fitted
from secateur.runtime.chain import Chain, Walk
from secateur.runtime.encoded_images import EncodedImages
from secateur.runtime.receipt import Answer, GateReceipt, Receipt, Stopwatch
from secateur.runtime.sampling import Sampler, Sampling
from secateur.runtime.token_batch import Ints, TokenBatch
from secateur.runtime.tokenizer import TextStream, Tokenizer


class Conversation:
    """One turn after the other; every turn has a question per sample.

    seen      of each sample's images, or of one sample that all share
    fitted    how each sample's images were brought onto the canvas
    capacity  cache rows of the whole conversation, before any gate; None takes what the first turn needs
    watch     has the time already spent on the images
    """

    def __init__(
        self,
        chain: Chain,
        tokenizer: Tokenizer,
        seen: EncodedImages,
        fitted: Sequence[tuple[Fitted, ...]],
        schedule: str,
        capacity: int | None,
        watch: Stopwatch,
    ) -> None:
        self.chain, self.tokenizer, self.schedule, self.capacity = chain, tokenizer, schedule, capacity
        self.turn: Turn | None = None
        self.gates: tuple[GateReceipt, ...] = ()
        self.kept: tuple[Ints, ...] = ()
        self._seen, self.fitted, self._watch = seen, tuple(fitted), watch
        self._cache: KVCache | None = None
        self._closed = False

    @property
    def room(self) -> int:
        """Cache rows that are free for questions and answers, 0 once it is closed."""
        if self._closed:
            return 0
        if self._cache is not None:
            return self._cache.room()
        return max(0, (self.capacity or 0) - self.chain.manifest.layout.rows)

    def ask(self, questions: Sequence[str], options: Sampling) -> Turn:
        """Read the questions; iterate over the result to get the answers.

        A question that does not fit leaves the conversation as it was.

        Raises:
            BadPrompt: a question is empty, the cache has no room, or the model's context is too short.
        """
        if self._closed:
            raise InputError("this chat was closed; open a new one")
        cache, turn, watch = self._cache, self.turn, Stopwatch()
        if cache is None or turn is None:
            watch = self._watch  # a device tells this one its times, when somebody waits for it
            layout, pad = self.chain.manifest.layout, self.tokenizer.prompt.pad
            rows = TokenBatch.prompt(layout, [self.tokenizer.first(q) for q in questions], pad)
            needed = rows.input_ids.shape[1] + options.max_new_tokens
            capacity = needed if self.capacity is None else self.capacity
            most = self.chain.backend.most_rows
            self._check(rows, options, capacity if most is None else min(capacity, most), layout.rows)
            cache = self.chain.cache(len(self.fitted), capacity, self.schedule)
            walk = self.chain.prefill(rows, self._seen, self.schedule, cache, watch)
            self._cache, self.gates, self.kept = cache, walk.gates, walk.kept
        else:
            unread = turn.unread(cache.position)
            tails = [[*u, *self.tokenizer.next(q)] for u, q in zip(unread, questions, strict=True)]
            rows = TokenBatch.pad(tails, self.tokenizer.prompt.pad, cache.position)
            self._check(rows, options, cache.room())
            walk = self.chain.extend(rows, cache, watch)
        self.turn = Turn(self, cache, rows, walk, options, watch)
        return self.turn

    def close(self) -> None:
        """Nothing more can be asked; the cache may serve another conversation.

        That of an answer that failed or was left does not: it may hold what is no number.
        """
        if self._cache is not None and self.turn is not None and self.turn.ended:
            self.chain.give_back(self._cache)
        self._cache, self.turn, self._closed = None, None, True

    def _check(self, rows: TokenBatch, options: Sampling, room: int, image: int = 0) -> None:
        """`image` of the rows are those of the image and what stands before it."""
        new, context = options.max_new_tokens, self.chain.manifest.dimensions.context
        text, most = rows.input_ids.shape[1] - image, self.chain.backend.most_text
        if most is not None and text > most:
            raise BadPrompt(
                f"the question has {text} rows with its template, the engines take {most}; shorten it, or build them "
                "with a larger --max-text"
            )
        first = self.chain.manifest.layout.numbered(1)[0][0]  # 1 where positions count from it
        needed = int(rows.position_ids.max()) + 1 - first + new
        if needed > context:
            raise BadPrompt(
                f"the prompt and {new} new tokens need {needed} positions, the model has {context}; "
                "shorten the prompt, begin a new chat, or lower max_new_tokens"
            )
        if rows.input_ids.shape[1] + new > room:
            raise no_room(rows.input_ids.shape[1], room, new)


class Turn:
    """One question per sample on its way to an answer. Iterating generates."""

    def __init__(
        self, talk: Conversation, cache: KVCache, rows: TokenBatch, walk: Walk, options: Sampling, watch: Stopwatch
    ) -> None:
        self.tokens: list[list[int]] = [[] for _ in rows.lengths]
        self._talk, self._cache, self._rows, self._walk, self._watch = talk, cache, rows, walk, watch
        self._options = options
        self._start = cache.position
        self._steps = 0
        self.ended = False

    def __iter__(self) -> Iterator[list[int | None]]:
        """The next token of each sample, None for a sample that has ended."""
        prompt = self._talk.tokenizer.prompt
        samplers = [Sampler(self._options) for _ in self.tokens]
        live = [True] * len(samplers)
        logits = self._walk.logits
        for step in range(self._options.max_new_tokens):
            if step:
                if self._talk.turn is not self:
                    raise InputError("this answer was left for a new question; it cannot go on")
                fed = [tokens[-1:] if alive else [] for tokens, alive in zip(self.tokens, live, strict=True)]
                rows = TokenBatch.pad(fed, prompt.pad, self._cache.position)
                with self._watch("decode"):
                    logits = self._talk.chain.step(rows, self._cache)
                self._steps += 1
            new = [s.pick(row) if alive else None for s, row, alive in zip(samplers, logits, live, strict=True)]
            for b, token in enumerate(new):
                if token is not None:
                    self.tokens[b].append(token)
                    live[b] = token not in prompt.stop
            self.ended = not any(live) or step + 1 == self._options.max_new_tokens
            yield new
            if self.ended:
                return

    def text(self) -> Iterator[str]:
        """Generate the answer of the only sample, piece by piece."""
        stream = TextStream(self._talk.tokenizer)
        for (token,) in self:
            if token is not None and token not in self._talk.tokenizer.prompt.stop and (piece := stream.push(token)):
                yield piece
        if piece := stream.finish():
            yield piece

    def answers(self) -> list[Answer]:
        """Generate to the end; an answer per sample."""
        for _ in self:
            pass
        return [self._answer(b) for b in range(len(self.tokens))]

    def unread(self, position: Ints) -> list[list[int]]:
        """Generated tokens of each sample that are not in the cache, which stands at `position`; no stop token."""
        stop = self._talk.tokenizer.prompt.stop
        done = position - self._start
        return [[t for t in tokens[n:] if t not in stop] for tokens, n in zip(self.tokens, done, strict=True)]

    def _answer(self, b: int) -> Answer:
        talk, tokens = self._talk, self.tokens[b]
        spoken = [t for t in tokens if t not in talk.tokenizer.prompt.stop]
        receipt = Receipt(
            schedule=talk.schedule,
            image_size=talk.chain.manifest.layout.size,
            images=talk.fitted[b],
            gates=talk.gates,
            segment_rows=self._walk.segment_rows,
            cache_bytes=self._cache.bytes,
            prompt_rows=int(self._rows.lengths[b]),
            generated_tokens=len(tokens),
            milliseconds=self._milliseconds(),
        )
        kept = tuple(tuple(int(i) for i in indices[b]) for indices in talk.kept)
        return Answer(talk.tokenizer.decode(spoken), tuple(tokens), kept, receipt, self._walk.logits[b])

    def _milliseconds(self) -> dict[str, float]:
        spent = dict(self._watch.milliseconds)
        decode = spent.pop("decode", 0.0)
        first = sum(spent.get(stage, 0.0) for stage in ("preprocess", "encode", "prefill"))
        per_token = decode / self._steps if self._steps else 0.0
        return spent | {
            "first_token": first, "decode": decode, "decode_per_token": per_token, "total": first + decode
        }  # fmt: skip
