# SPDX-License-Identifier: Apache-2.0
"""Effect of lower precision: comparison of a bundle with its checkpoint in fp32 on torch, question by question.

The bundle runs on ONNX Runtime, or on torch in bf16, which ONNX Runtime's CPU kernels lack.

Both sides run independently from pixels to answer, so a different choice at one gate affects all later gates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from secateur.bundle.graph_plan import runs
from secateur.bundle.manifest import GateRef, Manifest, TensorSpec
from secateur.bundle.reader import Bundle
from secateur.checkpoints.hub import DEMO
from secateur.evaluation import batching
from secateur.evaluation.tasks import demo
from secateur.evaluation.tasks.base import Question, Source, Task
from secateur.export.comparison import noise
from secateur.export.targets import DTYPES
from secateur.families.base import Family
from secateur.progress import Progress, silent
from secateur.runtime import Answer, Pipeline
from secateur.runtime.backends import base, ort
from secateur.runtime.backends import torch as eager
from secateur.runtime.range_check import RangeCheck

OVERLAP = {"fp32": 0.99, "fp16": 0.99, "bf16": 0.95}
"""Least share of equal kept tokens, mean over the gates of a schedule and the questions; bf16 rounds eight times as
coarsely as fp16, so tokens of close scores swap more often."""
LARGEST = float(np.finfo(np.float16).max)
QUESTIONS = 60
"""Default number. One early difference can change a third of an image's tokens, so few questions are not enough."""
BATCH = 8
HALF, FLOAT32 = ("float16", "bfloat16"), "float32"
PROMPTS = (
    "what is in the picture ?",
    "how many objects are there ?",
    "is there a person ?",
    "what is on the left ?",
    "which colors are there ?",
)
"""Questions for models other than the demo model."""


@dataclass(frozen=True)
class Overlap:
    """|A and B| / k of the tokens A, B that one gate keeps in the two precisions: mean and worst over the questions."""

    layer: int
    keep: int
    mean: float
    worst: float


@dataclass(frozen=True)
class Answers:
    """Share of right answers in each precision, and of questions with equal answers in both."""

    accuracy: float
    accuracy_fp32: float
    same: float


@dataclass(frozen=True)
class Difference:
    """Differences of one schedule for one image size, named as by `graph_plan.runs`.

    logits_error     largest difference of the first token's logits, mean over the questions
    relative_error   the same over the largest magnitude in fp32
    same_token       share of questions whose first token is the same
    overlap          mean over gates and questions; 1 without gates
    answers          None for a model whose questions have no known answers
    """

    schedule: str
    logits_error: float
    relative_error: float
    same_token: float
    overlap: float
    gates: tuple[Overlap, ...]
    answers: Answers | None


@dataclass(frozen=True)
class Activation:
    """Largest magnitude in the outputs of a graph, and the headroom: the largest fp16 value over it."""

    graph: str
    largest: float
    headroom: float


@dataclass(frozen=True)
class Precision:
    """Result of the comparison; `failures` is empty if every bound holds. `weights` describes integer weights."""

    dtype: str
    questions: int
    schedules: tuple[Difference, ...]
    activations: tuple[Activation, ...]
    weights: str = ""

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for each schedule whose kept tokens differ too much; integer weights have no bound."""
        if self.weights:
            return ()
        bound = OVERLAP[self.dtype]
        return tuple(
            f"schedule '{s.schedule}' keeps {s.overlap:.4f} of the tokens that fp32 keeps, the bound is {bound} "
            f"({self.questions} questions; ask more with --questions, or export with --dtype fp32)"
            for s in self.schedules
            if s.overlap < bound
        )


def compare(
    bundle: Bundle,
    count: int = QUESTIONS,
    progress: Progress = silent,
    family: Family | None = None,
) -> Precision:
    """Ask every schedule, for every image size, `count` questions in both precisions, fp32 first.

    The demo model gets the questions of the demo task, any other model generated images. One model is in memory at a
    time.

    Args:
        family: the checkpoint in fp32; None loads the one that the manifest names.

    Raises:
        BadModel: the checkpoint cannot be loaded.
        BadBundle: it is not the model that the bundle was made from.
        SecateurError: a graph returned inf or NaN.
    """
    manifest = bundle.manifest
    task = demo.Task(Source(questions=count)) if manifest.source == DEMO else None
    asked = {
        each.layout.size: task.questions if task else synthetic_questions(each, count) for each in manifest.buckets
    }
    longest = task.max_new_tokens if task else 1
    single = in_fp32(bundle)
    expected = _ask(single, eager.Backend(single, family=family), asked, longest, "fp32", progress)
    with _candidate(bundle, family) as backend:
        watched = RangeCheck(backend, manifest, share=1.0)
        found = _ask(bundle, watched, asked, longest, manifest.dtype, progress)
    differences = []
    for label, run in runs(manifest).items():
        gates, put = run.manifest.schedules[run.schedule].gates, asked[run.manifest.layout.size]
        differences.append(_difference(label, found[label], expected[label], gates, put, task))
    activations = [Activation(graph, size, LARGEST / max(size, 1e-12)) for graph, size in watched.largest.items()]
    how = manifest.quantization
    return Precision(manifest.dtype, count, tuple(differences), tuple(activations), str(how) if how else "")


@contextmanager
def _candidate(bundle: Bundle, family: Family | None) -> Iterator[base.Backend]:
    """Open the backend that runs the bundle: ONNX Runtime, or torch in bf16, for which the former has no CPU kernels.

    The weights of `family` are in bf16 until the end: a copy of a model would lose weights that stay in its files.
    """
    if bundle.manifest.dtype != "bf16":
        yield ort.Backend(bundle)
    elif family is None:
        yield eager.Backend(bundle)
    else:
        exact = [(weight, weight.data) for weight in family.model.parameters()]
        family.to(DTYPES["bf16"])
        try:
            yield eager.Backend(bundle, family=family)
        finally:
            for weight, data in exact:
                weight.data = data


def synthetic_questions(manifest: Manifest, count: int) -> list[Question]:
    """Return `count` questions without answers, each about its own generated image; the same at every call."""
    return [_synthetic(manifest, number) for number in range(count)]


def _synthetic(manifest: Manifest, number: int) -> Question:
    def load() -> Image.Image:
        values = noise((3, *manifest.layout.image_size), np.random.default_rng(number)).transpose(1, 2, 0)
        return Image.fromarray((127.5 + 50 * values).clip(0, 255).astype(np.uint8))

    return Question(str(number), f"made picture {number}", str(number), load, PROMPTS[number % len(PROMPTS)], ())


def in_fp32(bundle: Bundle) -> Bundle:
    """Return the bundle with the manifest of an fp32 export, for the torch backend, which reads no graph file."""
    graphs = tuple(replace(g, inputs=_floats(g.inputs), outputs=_floats(g.outputs)) for g in bundle.manifest.graphs)
    exact: dict[str, Any] = {"quantization": None} if bundle.manifest.quantization else {}
    return replace(bundle, manifest=replace(bundle.manifest, dtype="fp32", graphs=graphs, **exact))


def _floats(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(replace(spec, dtype=FLOAT32 if spec.dtype in HALF else spec.dtype) for spec in specs)


def _ask(
    bundle: Bundle,
    backend: base.Backend,
    asked: Mapping[str, Sequence[Question]],
    longest: int,
    stage: str,
    progress: Progress,
) -> dict[str, list[Answer]]:
    """Return the answers of every schedule for every image size to the questions `asked` of that size.

    The logits of all first tokens stay in memory.
    """
    walks = runs(bundle.manifest)
    answers: dict[str, list[Answer]] = {label: [] for label in walks}
    total = sum(len(asked[run.manifest.layout.size]) for run in walks.values())
    with Pipeline(bundle, backend) as vlm:
        for size, questions in asked.items():
            own = {label: run.schedule for label, run in walks.items() if run.manifest.layout.size == size}
            for start in range(0, len(questions), BATCH):
                part = questions[start : start + BATCH]
                images = [(q.load(),) * bundle.manifest.layout.images for q in part]
                for label, schedule in own.items():
                    progress(stage, label, sum(map(len, answers.values())), total)
                    answers[label] += batching.ask(vlm, part, images, schedule, longest, size)
    progress(stage, "", total, total)
    return answers


def _difference(
    name: str,
    found: Sequence[Answer],
    expected: Sequence[Answer],
    placed: Sequence[GateRef],
    asked: Sequence[Question],
    task: Task | None,
) -> Difference:
    pairs = list(zip(found, expected, strict=True))
    errors = np.array([np.abs(a.first_logits - b.first_logits).max() for a, b in pairs])
    scale = np.array([np.abs(b.first_logits).max() for b in expected])
    gates = []
    for number, gate in enumerate(placed):
        shares = [overlap(a.kept[number], b.kept[number]) for a, b in pairs]
        gates.append(Overlap(gate.layer, gate.keep, float(np.mean(shares)), min(shares)))
    return Difference(
        name,
        float(errors.mean()),
        float((errors / scale).mean()),
        float(np.mean([a.tokens[0] == b.tokens[0] for a, b in pairs])),
        float(np.mean([gate.mean for gate in gates])) if gates else 1.0,
        tuple(gates),
        _answers(pairs, asked, task) if task else None,
    )


def overlap(found: Sequence[int], expected: Sequence[int]) -> float:
    """Return |A and B| / k of two sets of k; 1 for k = 0."""
    return len(set(found) & set(expected)) / len(expected) if expected else 1.0


def _answers(pairs: Sequence[tuple[Answer, Answer]], asked: Sequence[Question], task: Task) -> Answers:
    right, right_fp32 = (
        np.mean([task.score(q, pair[side].text) for q, pair in zip(asked, pairs, strict=True)]) for side in (0, 1)
    )
    return Answers(float(right), float(right_fp32), float(np.mean([a.text == b.text for a, b in pairs])))
