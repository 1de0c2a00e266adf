# SPDX-License-Identifier: Apache-2.0
"""Results of an evaluation: one document per run, stored as JSON and shown as tables or as an HTML page, with notes.

Intervals are (low, high), 95 % percentile bootstrap; questions about one image are resampled together.
Undefined values are None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from secateur.report.formats import Document

Interval = tuple[float, float]
SUMS = ("encode", "prefill")
"""Entries of `stage_ms` that are sums of other entries."""
DOWNSAMPLE = "downsample"
CONTROLS = ("random", "stride", DOWNSAMPLE)
"""Names of the control methods, which score no token; by name, since a reader of results may lack the methods."""

FLOPS = (
    "Prefill operations of the vision tokens in the decoder, as a share of those without pruning. The gates "
    "themselves are not included, nor is the encoder, where a smaller image saves much."
)
FLOPS_WITH_GATES = (
    "In brackets, where the schedule reports it: decoder and gates together, text included, as a share of the dense "
    "layers that the gates serve."
)


@dataclass(frozen=True)
class GateLine:
    """Gate of a schedule, of kind `kind`: `keep` vision tokens enter decoder layer `layer`."""

    layer: int
    kind: str
    keep: int


@dataclass(frozen=True)
class McNemar:
    """Numbers of questions that only `full` or only this schedule answers correctly, and the exact two-sided p."""

    only_full: int
    only_this: int
    p: float


@dataclass(frozen=True)
class SplitPart:
    """Number of questions of one part, and the mean score on them; None if there are none."""

    questions: int
    score: float | None


@dataclass(frozen=True)
class Split:
    """The questions that `full` answers correctly, split by the answers from an image downsampled to as few tokens.

    VTC-Bench (arXiv 2510.07143): downsampling is enough for `easy` questions; only `hard` ones differentiate methods.
    `reference` is the schedule of the method downsample that is nearest in average tokens.
    """

    reference: str
    hard: SplitPart
    easy: SplitPart


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of the time to the first token, in milliseconds."""

    p50: float
    p95: float


@dataclass(frozen=True)
class ScheduleResult:
    """Results of one schedule. `full` is the first of an evaluation and the reference of the others.

    method                "full" for full
    compression           share of vision tokens that an average decoder layer does not process
    average_tokens        vision tokens of an average decoder layer
    prefill_flops_ratio   of the vision rows in the decoder, over the unpruned value; counts neither the gates
                          themselves nor the encoder, where a smaller image saves
    flops_ratio_with_gates
                          decoder and gates, text rows included, over the dense layers that the gates serve: as the
                          schedule's calibration reports it, else None
    cache_bytes           keys and values of one question, median over the timed ones
    score                 the task's main metric, higher is better
    retention             score over that of full; None if full scores 0
    mcnemar               None for full, and if a question can be half right
    split                 None for full and for downsample itself, and if no schedule of downsample has about as
                          many tokens
    ttft_ms, stage_ms     one question at a time: time to first token; median milliseconds of each stage, and SUMS
    groups                score on each kind of question
    metrics               the other metrics of the task
    """

    name: str
    method: str
    positions: str
    gates: tuple[GateLine, ...]
    compression: float
    average_tokens: float
    prefill_flops_ratio: float
    flops_ratio_with_gates: float | None
    cache_bytes: int
    score: float
    score_interval: Interval
    retention: float | None
    retention_interval: Interval | None
    mcnemar: McNemar | None
    split: Split | None
    ttft_ms: Percentiles
    stage_ms: dict[str, float]
    groups: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation(Document):
    """All schedules of one bundle on the same questions.

    task       "demo", or the path of the folder or file of questions
    metric     name of the score; `full_marks` is its largest value: 1, or another value such as 2800 of MME
    timed      questions that were timed one at a time
    machine    cpu, cores, the GPU if there is one, and versions of what ran
    vision_tokens, grid
               of a prompt, and rows and columns of its first view, at the first image size
    segments   decoder segments: the decoder is cut at the gates of every schedule, and all schedules pay for the cuts
    encoder_scores
               outputs of the encoder besides the features, for gates; all schedules pay for these too
    schedules  full first
    image_sizes
               WIDTHxHEIGHT, the first one first
    """

    task: str
    metric: str
    full_marks: float
    questions: int
    timed: int
    seed: int
    bundle: str
    model: str
    target: str
    dtype: str
    backend: str
    machine: dict[str, str]
    command: str
    vision_tokens: int
    grid: tuple[int, int]
    segments: int
    encoder_scores: tuple[str, ...]
    schedules: tuple[ScheduleResult, ...]
    image_sizes: tuple[str, ...] = ()
    schema: int = 1


@dataclass(frozen=True)
class Answered:
    """Answer of one schedule to the question of an overlay.

    text    the answer
    score   from 0 (wrong) to 1 (right)
    layers  decoder layers of the gates
    kept    original vision-token indices (raster order) that each gate keeps
    """

    text: str
    score: float
    layers: tuple[int, ...]
    kept: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Overlay:
    """One image and question, with the answers and kept tokens of each schedule by its name."""

    image: Image.Image
    question: str
    expected: str
    answers: dict[str, Answered]


def bundle_note(segments: int, encoder_scores: Sequence[str]) -> str:
    """Return a note on the cost that the schedules of a bundle add to each other; "" if there is none.

    segments        decoder segments of the bundle
    encoder_scores  outputs of its encoder besides the features
    """
    causes = []
    if segments > 1:
        causes.append(f"cuts the decoder into {segments} segments because some schedule needs it")
    if encoder_scores:
        causes.append(f"makes the encoder return {', '.join(encoder_scores)} for the gates that read it")
    if not causes:
        return ""
    fewer = "fewer borders and outputs" if encoder_scores else "fewer borders"
    return (
        f"This bundle {' and '.join(causes)}: every schedule pays for that, including full. A method that is exported "
        f"alone has {fewer} and is faster. Compare schedules here with each other, not with other bundles."
    )


def sizes_note(image_sizes: Sequence[str]) -> str:
    """Return a note on the image size of the token counts; "" if there is only one size."""
    if len(image_sizes) < 2:
        return ""
    first, *others = image_sizes
    return (
        f"Tokens and FLOPs are those of images of {first}; those of {' and '.join(others)} differ. "
        "Scores, times and caches are for the sizes that the questions used."
    )


def references(used: Iterable[str], tokens: Mapping[str, float]) -> str:
    """Return the reference schedules of the splits with their average tokens: "downsample-21 (30.0 tokens)"."""
    return ", ".join(f"{name} ({tokens[name]:,.1f} tokens)" for name in dict.fromkeys(used))
