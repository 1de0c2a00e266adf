# SPDX-License-Identifier: Apache-2.0
"""Answer questions about images with the graphs of a bundle."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from secateur import plugins
from secateur.bundle.reader import Bundle
from secateur.bundle.sampling import Sampling
from secateur.errors import InputError, UnknownName
from secateur.runtime import backends
from secateur.runtime.backends.base import Backend
from secateur.runtime.chat import Chat
from secateur.runtime.image import ImageLike
from secateur.runtime.image_sizes import ImageSizes, Prepared
from secateur.runtime.prompt_limits import chat_capacity, check_question
from secateur.runtime.range_check import RangeCheck
from secateur.runtime.receipt import Answer, Stopwatch
from secateur.runtime.sampling import merge
from secateur.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from secateur.runtime.sampling import SamplingOptions

MAX_THREADS = 1024


class Pipeline:
    """A loaded bundle on a backend. Threads may share it; they take turns. Close it when done, or use `with`."""

    def __init__(self, bundle: Bundle, backend: Backend, schedules: Sequence[str] | None = None) -> None:
        self.bundle = bundle
        self._backend = backend
        vocabulary = bundle.manifest.dimensions.vocabulary
        self._tokenizer = Tokenizer.read(bundle.prompt, bundle.path("tokenizer.json"), vocabulary)
        self._sizes = ImageSizes(bundle, backend, schedules)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        backend: str = "ort",
        threads: int | None = None,
        verify: bool = True,
        device: str | None = None,
        schedules: Sequence[str] | None = None,
        guard: bool = False,
        model: str | os.PathLike[str] | None = None,
    ) -> Pipeline:
        """Open the bundle in the folder `path`.

        backend    name of a file in secateur/runtime/backends
        threads    CPU threads; None: the backend decides
        verify     whether to compare the sha256 of every file with the manifest
        device     "cpu", "cuda", "gpu" or "npu", if the backend supports it; None: the default of the backend
        schedules  names of the schedules to open besides "full" (other gates use no memory); None: all
        guard      whether to stop at the first graph output outside of its dtype's range (slow, for debugging)
        model      folder of the checkpoint, for the backend torch; None: where the bundle was exported from

        Raises:
            BadBundle: it is damaged, unsafe or not a bundle.
            UnknownName: there is no such backend or schedule.
            BackendMissing: the backend's library is not installed.
        """
        if threads is not None and (not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS):
            raise InputError(f"threads must be an integer from 1 to {MAX_THREADS}, got {threads!r}")
        if model is not None and backend != "torch":
            raise InputError(
                f"--model {model} changes nothing: only the backend torch reads a checkpoint; leave it out"
            )
        module = plugins.load(backends, backend, "backend")
        bundle = replace(Bundle.load(path, verify), checkpoint=None if model is None else os.fspath(model))
        for name in schedules or ():
            if name not in bundle.manifest.schedules:
                raise _unknown(name, bundle.manifest.schedules)
        opened = module.Backend(bundle, threads=threads, device=device)
        if guard:
            opened = RangeCheck(opened, bundle.manifest)
        try:
            return cls(bundle, opened, schedules)
        except BaseException:
            opened.close()
            raise

    @property
    def most_batch(self) -> int | None:
        """Maximum number of questions in a batch; None: no limit."""
        return self._backend.most_batch

    @property
    def records_steps(self) -> bool:
        """Whether decode steps are recorded, and replayed while schedule and capacity stay the same."""
        return self._backend.fixed_shapes

    @property
    def schedules(self) -> tuple[str, ...]:
        """Names of the open schedules."""
        return self._sizes.first.schedules

    @property
    def image_sizes(self) -> tuple[str, ...]:
        """Image sizes of the bundle, WIDTHxHEIGHT."""
        return self._sizes.sizes

    def describe(self) -> dict[str, str]:
        """Return the device of the backend and the versions of its libraries, for a report of measurements."""
        return self._backend.describe()

    @overload
    def ask(
        self,
        image: ImageLike | tuple[ImageLike, ...],
        prompt: str,
        schedule: str | None = None,
        *,
        image_size: str | None = None,
        sampling: Sampling | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Answer: ...

    @overload
    def ask(
        self,
        image: list[Any],
        prompt: str | list[str],
        schedule: str | None = None,
        *,
        image_size: str | None = None,
        sampling: Sampling | None = None,
        **options: Unpack[SamplingOptions],
    ) -> list[Answer]: ...

    @overload
    def ask(
        self,
        image: ImageLike | tuple[ImageLike, ...],
        prompt: list[str],
        schedule: str | None = None,
        *,
        image_size: str | None = None,
        sampling: Sampling | None = None,
        **options: Unpack[SamplingOptions],
    ) -> list[Answer]: ...

    def ask(
        self,
        image: ImageLike | tuple[ImageLike, ...] | list[Any],
        prompt: str | list[str],
        schedule: str | None = None,
        *,
        image_size: str | None = None,
        sampling: Sampling | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Answer | list[Answer]:
        """Answer `prompt` about `image` (a path, a PIL image, or a uint8 array [H,W,3]).

        If the bundle was exported for several images per prompt, `image` is a tuple. Lists are run as one batch and
        give a list of answers; a single image or prompt is used for the whole batch.

        schedule    name of a schedule in the bundle; None: the only one besides "full"
        image_size  one of `image_sizes`; None: the size that fits the (first) image best, see `image_sizes.choose`
        sampling    settings for the answer; None: those of the checkpoint (`bundle.prompt.sampling`). `Sampling()` is
                    greedy without any. Keywords such as `max_new_tokens=16` override them, see `Sampling`

        Raises:
            BadImage: it is not an image.
            BadPrompt: the prompt is empty, or too long for the model.
            BadBundle: a file of the bundle was changed or replaced after it was loaded.
            UnknownName: there is no such schedule, image size or option.
            InputError: lists differ in length, an option is out of bounds, or a schedule must be named.
        """
        merge(sampling or self.bundle.prompt.sampling, options)  # refuses wrong ones before an image is read
        images = image if isinstance(image, list) else [image]
        prompts = prompt if isinstance(prompt, list) else [prompt]
        batch = max(len(images), len(prompts))
        if self.most_batch is not None and batch > self.most_batch:
            raise InputError(
                f"a batch of {batch}, the engines take at most {self.most_batch}; ask in smaller batches (`secateur "
                "eval --batch`), or build the engines with a larger --max-batch"
            )
        if not images or not prompts or {len(images), len(prompts)} - {1, batch}:
            raise InputError(
                f"{len(images)} images and {len(prompts)} prompts do not pair; give the same number of each"
            )
        prompts = prompts if len(prompts) == batch else prompts * batch
        prepared = [self._sizes.prepare(i, image_size) for i in images]
        answers = self._answers(prepared * (batch // len(images)), prompts, schedule, sampling, options)
        return answers if isinstance(image, list) or isinstance(prompt, list) else answers[0]

    def stream(
        self,
        image: ImageLike | tuple[ImageLike, ...],
        prompt: str,
        schedule: str | None = None,
        *,
        image_size: str | None = None,
        sampling: Sampling | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[str]:
        """Yield the answer in pieces while it is generated; options and errors are those of `ask`."""
        merge(sampling or self.bundle.prompt.sampling, options)  # refuses wrong ones before an image is read
        chat = self._chat([self._sizes.prepare(image, image_size)], 1, schedule, None)
        return _to_the_end(chat, chat.begin([prompt], sampling, options).text())

    def open(
        self,
        image: ImageLike | tuple[ImageLike, ...],
        schedule: str | None = None,
        capacity: int | None = None,
        image_size: str | None = None,
    ) -> Chat:
        """Open a chat about `image`, or a tuple of images, see `ask`.

        capacity  cache rows for images, questions and answers together; None: 1024 after the images, or as many as the
                  model's context allows

        Raises:
            BadImage, UnknownName, InputError: as for `ask`.
        """
        prepared = self._sizes.prepare(image, image_size)
        return self._chat([prepared], 1, schedule, chat_capacity(self._sizes.chain(prepared.size), capacity))

    def check(self, prompt: str, max_new_tokens: int) -> None:
        """Check that a first question fits, without an image: for the smallest of the image sizes.

        Raises:
            BadPrompt: it is empty, or too long for the model or the engines.
        """
        chain = min(map(self._sizes.chain, self.image_sizes), key=lambda chain: chain.manifest.layout.rows)
        check_question(chain, self._tokenizer, prompt, Sampling(max_new_tokens=max_new_tokens))

    def close(self) -> None:
        """Free all graphs; the pipeline and its chats cannot be used afterwards."""
        self._backend.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answers(
        self,
        prepared: list[Prepared],
        prompts: list[str],
        schedule: str | None,
        sampling: Sampling | None,
        options: SamplingOptions,
    ) -> list[Answer]:
        """Run one batch per image size; the answers are in the order of the prompts."""
        answers: dict[int, Answer] = {}
        for size in dict.fromkeys(each.size for each in prepared):
            numbers = [i for i, each in enumerate(prepared) if each.size == size]
            chosen = [prepared[i] for i in numbers]
            shared = len({id(each) for each in chosen}) == 1
            chat = self._chat(chosen[:1] if shared else chosen, len(numbers), schedule, None)
            found = chat.begin([prompts[i] for i in numbers], sampling, options).answers()
            chat.close()
            answers |= dict(zip(numbers, found, strict=True))
        return [answers[i] for i in range(len(prompts))]

    def _chat(self, prepared: list[Prepared], batch: int, schedule: str | None, capacity: int | None) -> Chat:
        """Return a chat about the images of `batch` samples, or of one sample that all share; of one image size."""
        self._backend.check_files()
        name, chain, watch = self._schedule(schedule), self._sizes.chain(prepared[0].size), Stopwatch()
        watch.add("preprocess", sum(each.milliseconds for each in prepared))
        encoded = chain.encode(np.concatenate([each.pixels for each in prepared]), name, watch)
        fitted = [each.fitted for each in prepared] * (batch // len(prepared))
        return Chat(chain, self._tokenizer, encoded, fitted, name, capacity, watch, self._backend.check_files)

    def _schedule(self, name: str | None) -> str:
        names = self.schedules
        if name is not None:
            if name in self.bundle.manifest.schedules and name not in names:
                raise InputError(f"schedule '{name}' was not opened; name it in Pipeline.load(schedules=...)")
            if name not in names:
                raise _unknown(name, names)
            return name
        pruned = [n for n in names if n != "full"]
        if len(pruned) > 1:
            raise InputError(f"the bundle has several schedules; name one of {', '.join(sorted(names))}")
        return pruned[0] if pruned else "full"


def _to_the_end(chat: Chat, pieces: Iterator[str]) -> Iterator[str]:
    """Yield all pieces, and then close the chat."""
    yield from pieces
    chat.close()


def _unknown(name: str, names: Iterable[str]) -> UnknownName:
    return UnknownName("schedule", str(name), names, "`secateur export --schedule FILE` adds one.")
