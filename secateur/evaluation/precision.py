# SPDX-License-Identifier: Apache-2.0
"""What less precision changes: a bundle against its checkpoint in fp32 on torch, question by question.

The bundle runs on ONNX Runtime; in bf16, which its CPU kernels lack, on torch too.

Each side goes its own way from pixels to answer, so a token that changes place at one gate is seen by all that follow.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from secateur.artifacts import Manifest, TensorSpec
from secateur.evaluation import asking, plain
from secateur.evaluation.tasks import demo
from secateur.evaluation.tasks.base import Question, Source, Task
from secateur.export.targets import DTYPES
from secateur.models.base import DEMO, Family
from secateur.progress import Progress, silent
from secateur.runtime import Answer, Pipeline
from secateur.runtime.backends import base, ort
from secateur.runtime.backends import torch as eager
from secateur.runtime.bundle import Bundle
from secateur.runtime.guard import Guard

OVERLAP = 0.99
"""Share of the kept tokens that must be the same, mean over the gates of a schedule and over the questions."""
LARGEST = float(np.finfo(np.float16).max)
QUESTIONS = 60
"""By default. One early pick that flips can change a third of a picture's tokens, so that few questions say little."""
BATCH = 8
HALF, FLOAT32 = ("float16", "bfloat16"), "float32"


@dataclass(frozen=True)
class Overlap:
    """|A and B| / k of the tokens that one gate kept in both precisions: mean and worst of the questions."""

    layer: int
    keep: int
    mean: float
    worst: float


@dataclass(frozen=True)
class Answers:
    """Share of right answers in both precisions, and of questions whose two answers are the same words."""

    accuracy: float
    accuracy_fp32: float
    same: float


@dataclass(frozen=True)
class Difference:
    """One schedule.

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
    """Largest magnitude in the outputs of a graph, and how many times it fits into fp16."""

    graph: str
    largest: float
    headroom: float


@dataclass(frozen=True)
class Precision:
    """The whole comparison; `failures` is empty if every bound holds. `weights` says how integers are stored, if so."""

    dtype: str
    questions: int
    schedules: tuple[Difference, ...]
    activations: tuple[Activation, ...]
    weights: str = ""

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for each schedule that keeps too many other tokens; integers are another model, so without bound."""
        if self.weights:
            return ()
        return tuple(
            f"schedule '{s.schedule}' keeps {s.overlap:.4f} of the tokens that fp32 keeps, the bound is {OVERLAP} "
            f"({self.questions} questions; ask more with --questions, or export with --dtype fp32)"
            for s in self.schedules
            if s.overlap < OVERLAP
        )


def compare(
    bundle: Bundle,
    count: int = QUESTIONS,
    progress: Progress = silent,
    family: Family | None = None,
) -> Precision:
    """Put `count` questions to every schedule in both precisions, exact fp32 first; one model is in memory at a time.

    The demo model is asked the questions of the demo task; any other is asked about made pictures.

    Args:
        family: the checkpoint in fp32; None loads the one that the manifest names.

    Raises:
        BadModel: the checkpoint cannot be loaded.
        BadBundle: it is not the model that the bundle was made from.
        SecateurError: inf or NaN came out of a graph.
    """
    manifest = bundle.manifest
    task = demo.Task(Source(questions=count)) if manifest.source == DEMO else None
    asked = list(task.questions) if task else plain.questions(manifest, count)
    longest = task.max_new_tokens if task else 1
    single = in_fp32(bundle)
    expected = _ask(single, eager.Backend(single, family=family), asked, longest, "fp32", progress)
    watched = Guard(_candidate(bundle, family), manifest, share=1.0)
    found = _ask(bundle, watched, asked, longest, manifest.dtype, progress)
    differences = [_difference(name, found[name], expected[name], manifest, asked, task) for name in found]
    activations = [Activation(graph, size, LARGEST / max(size, 1e-12)) for graph, size in watched.largest.items()]
    how = manifest.quantisation
    return Precision(manifest.dtype, len(asked), tuple(differences), tuple(activations), str(how) if how else "")


def _candidate(bundle: Bundle, family: Family | None) -> base.Backend:
    """The backend that runs the bundle as it is; in bf16, for which ONNX Runtime has no CPU kernels, torch."""
    if bundle.manifest.dtype != "bf16":
        return ort.Backend(bundle)
    if family is not None:
        family = copy.deepcopy(family)
        family.to(DTYPES["bf16"])
    return eager.Backend(bundle, family=family)


def in_fp32(bundle: Bundle) -> Bundle:
    """The bundle as an exact export in fp32 would describe it: for the torch backend, which reads no graph file."""
    graphs = tuple(replace(g, inputs=_floats(g.inputs), outputs=_floats(g.outputs)) for g in bundle.manifest.graphs)
    exact: dict[str, Any] = {"quantisation": None} if bundle.manifest.quantisation else {}
    return replace(bundle, manifest=replace(bundle.manifest, dtype="fp32", graphs=graphs, **exact))


def _floats(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(replace(spec, dtype=FLOAT32 if spec.dtype in HALF else spec.dtype) for spec in specs)


def _ask(
    bundle: Bundle, backend: base.Backend, asked: Sequence[Question], longest: int, stage: str, progress: Progress
) -> dict[str, list[Answer]]:
    """The answers of every schedule. The logits of all first tokens stay in memory."""
    names = tuple(bundle.manifest.schedules)
    answers: dict[str, list[Answer]] = {name: [] for name in names}
    with Pipeline(bundle, backend) as vlm:
        for start in range(0, len(asked), BATCH):
            part = asked[start : start + BATCH]
            images = [question.load() for question in part]
            for name in names:
                progress(stage, name, sum(map(len, answers.values())), len(asked) * len(names))
                answers[name] += asking.ask(vlm, part, images, name, longest)
    progress(stage, "", len(asked) * len(names), len(asked) * len(names))
    return answers


def _difference(
    name: str,
    found: Sequence[Answer],
    expected: Sequence[Answer],
    manifest: Manifest,
    asked: Sequence[Question],
    task: Task | None,
) -> Difference:
    pairs = list(zip(found, expected, strict=True))
    errors = np.array([np.abs(a.first_logits - b.first_logits).max() for a, b in pairs])
    scale = np.array([np.abs(b.first_logits).max() for b in expected])
    gates = []
    for number, gate in enumerate(manifest.schedules[name].gates):
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
    """|A and B| / k of two sets of k; 1 for k = 0."""
    return len(set(found) & set(expected)) / len(expected) if expected else 1.0


def _answers(pairs: Sequence[tuple[Answer, Answer]], asked: Sequence[Question], task: Task) -> Answers:
    right, right_fp32 = (
        np.mean([task.score(q, pair[side].text) for q, pair in zip(asked, pairs, strict=True)]) for side in (0, 1)
    )
    return Answers(float(right), float(right_fp32), float(np.mean([a.text == b.text for a, b in pairs])))
