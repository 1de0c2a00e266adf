# SPDX-License-Identifier: Apache-2.0
"""Adapter that runs a bundle as the model `secateur` of lmms-eval, found by its entry point (setup.cfg).

    lmms-eval --model secateur --model_args bundle=build/llava-btp,schedule=btp-26 --tasks pope --batch_size 8

Questions have one image. lmms-eval is not a dependency of Secateur: pip install lmms-eval.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image

from secateur.errors import InputError
from secateur.evaluation.datasets.folder import without_placeholders
from secateur.runtime import Pipeline

MAX_NEW_TOKENS = 64


def manifest() -> ModelManifest:
    """Return the model description for lmms-eval; called through the entry point."""
    return ModelManifest("secateur", simple_class_path=f"{__name__}.{Secateur.__name__}")


class Secateur(lmms):  # type: ignore[misc]
    """One schedule of a bundle.

    bundle, schedule, backend, threads  as for Pipeline; without a schedule, the only one besides "full"
    batch_size                          questions answered together
    others                              arguments that lmms-eval gives every model (device, max_batch_size); unused
    """

    is_simple = True

    def __init__(
        self,
        bundle: str,
        schedule: str | None = None,
        backend: str = "ort",
        threads: int | None = None,
        batch_size: int | str = 1,
        **others: Any,
    ) -> None:
        super().__init__()
        unknown = sorted(set(others) - {"device", "max_batch_size"})
        if unknown:
            raise InputError(f"--model_args has no {', '.join(unknown)}; use bundle, schedule, backend and threads")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise InputError(f"--batch_size is {batch_size}; it must be a whole number, at least 1")
        self.batch_size = int(batch_size)
        self.schedule = schedule
        self.vlm = Pipeline.load(bundle, backend, threads)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return answers in the order of the requests; adjacent requests with equal options share batches."""
        answers: list[str] = []
        for _, group in itertools.groupby((request.args for request in requests), key=lambda a: repr(a[1])):
            same = list(group)
            for start in range(0, len(same), self.batch_size):
                answers += self._batch(same[start : start + self.batch_size])
                if sys.stderr.isatty():
                    end = "\n" if len(answers) == len(requests) else "\r"
                    print(f"questions {len(answers)}/{len(requests)}", end=end, file=sys.stderr, flush=True)
        return answers

    def _batch(self, part: Sequence[tuple[Any, ...]]) -> list[str]:
        images, options = [self._image(*args[2:]) for args in part], part[0][1]
        until = options.get("until") or []
        said = self.vlm.ask(
            images,
            [without_placeholders(args[0]) for args in part],
            schedule=self.schedule,
            max_new_tokens=options.get("max_new_tokens", MAX_NEW_TOKENS),
            temperature=options.get("temperature") or 0.0,
            top_p=options.get("top_p") or 1.0,
            stop_strings=tuple(filter(None, [until] if isinstance(until, str) else until)),
        )
        texts = [answer.text.strip() for answer in said]
        for (context, given, *_), text in zip(part, texts, strict=True):
            self.cache_hook.add_partial("generate_until", (context, given), text)
        return texts

    def _image(self, doc_to_visual: Any, doc_id: Any, task: str, split: str) -> Image.Image:
        visuals = doc_to_visual(self.task_dict[task][split][doc_id])
        if len(visuals) != 1 or not isinstance(visuals[0], Image.Image):
            raise InputError(f"question {doc_id} of {task} has {len(visuals)} visuals; it must have one image")
        image: Image.Image = visuals[0]
        return image

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("likelihoods of answers are not supported; choose a task that generates")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("several rounds are not supported; choose a task with one question per image")
