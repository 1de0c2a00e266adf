# SPDX-License-Identifier: Apache-2.0
"""Results of a profile in milliseconds: one document per run, for times taken here or by trtexec.

Percentiles follow the rule of trtexec, so that its console and our tables agree for the same queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secateur.bundle.schedule import FULL
from secateur.report.formats import Document

APART = (
    "trtexec timed the graphs one by one; a chain is the sum of its graphs, without preprocessing and the time "
    "between graphs. Percentiles of separate runs do not add up: p99 is the sum of the graphs' p99, an upper estimate."
)
IN_TURN = "All schedules were asked the same question, in turn, in one process; one image and one question at a time."

STAGES = {
    "vision": "vision",
    "projector": "projector",
    "embed": "embed",
    "rotary": "segments",
    "segment": "segments",
    "gate": "gates",
}
"""Stages of the time to first token by the kind of the graph. "preprocess" is a further stage."""


@dataclass(frozen=True)
class Spread:
    """Percentiles in milliseconds; None if unknown, as for a sum of graphs that were timed separately.

    variation   standard deviation over mean
    """

    p50: float
    p90: float | None
    p95: float | None
    p99: float
    variation: float | None


def percentile(ascending: Sequence[float], p: float) -> float:
    """Return the value at index max(n - 1 - int((1 - p/100) n), 0) of n ascending values, without interpolation.

    Computed in 32-bit floats like in trtexec: p99 of 100 values is the largest one.

    Raises:
        ValueError: there are no values.
    """
    if not ascending:
        raise ValueError("percentile of no values")
    n = len(ascending)
    above = int((np.float32(1) - np.float32(p) / np.float32(100)) * np.float32(n))
    return ascending[max(n - 1 - above, 0)]


def spread(milliseconds: Sequence[float]) -> Spread:
    """Return percentiles and variation of some runs.

    Raises:
        ValueError: there are no runs.
    """
    p50, p90, p95, p99 = (percentile(sorted(milliseconds), p) for p in (50, 90, 95, 99))
    mean = float(np.mean(milliseconds))
    return Spread(p50, p90, p95, p99, float(np.std(milliseconds)) / mean if mean else 0.0)


def total(parts: Sequence[Spread]) -> Spread:
    """Return the spread of a chain of separately timed graphs: the sums of p50 and, as an upper estimate, of p99.

    Percentiles of separate runs do not add up, as all graphs are rarely slow at once. So p90 and p95 are unknown.
    """
    return Spread(sum(part.p50 for part in parts), None, None, sum(part.p99 for part in parts), None)


@dataclass(frozen=True)
class LayerLine:
    """One of the slowest layers of a graph.

    type, nodes  layer type and ONNX nodes; empty if the engine has no detailed layers
    median       milliseconds
    share        share of the layers of its graph
    selects      it contains a top-k or gather
    """

    name: str
    type: str
    nodes: tuple[str, ...]
    median: float
    share: float
    selects: bool


@dataclass(frozen=True)
class GraphTimes:
    """One graph at one size.

    name     name of the measurement
    kind     vision (a smaller image too), projector, embed, segment or gate
    part     encode (once per image), prefill (once per question) or decode (once per generated token)
    runs     number of timed runs
    compute  time of the computation
    enqueue  median time of the host to enqueue the work on the GPU; None if trtexec did not time it
    bound    the GPU may wait for the host: trtexec warns about it, or its rule applies
    shares   share of the time to first token of each schedule that runs it, p50 over p50; for `decode` of the decode
             step
    layers   slowest layers
    """

    name: str
    graph: str
    kind: str
    part: str
    runs: int
    compute: Spread
    enqueue: float | None
    bound: bool
    shares: dict[str, float]
    layers: tuple[LayerLine, ...] = ()


@dataclass(frozen=True)
class ChainTimes:
    """One schedule from image to answer. `full` comes first, and the others are compared with it.

    schedule             its name, followed by @WIDTHxHEIGHT if the bundle has several image sizes; each size has
                         its own chain, compared with full at this size
    average_tokens       vision tokens of an average decoder layer
    prefill_flops_ratio  prefill operations of the vision rows in the decoder, over the unpruned value (schedule)
    encode, prefill      from pixels to vision tokens; from there to the first logits
    first_token          encode, prefill, and preprocessing if it was timed
    decode               one decode step of one token; None if none was timed
    stages               p50 of each stage of the time to first token
    gates_share          share of the gates in the time to first token
    speed_up             time to first token of full over that of this schedule; None if full was not timed
    prefill_speed_up     speed_up of the prefill alone
    """

    schedule: str
    method: str
    average_tokens: float
    prefill_flops_ratio: float
    encode: Spread
    prefill: Spread
    first_token: Spread
    decode: Spread | None
    stages: dict[str, float]
    gates_share: float
    speed_up: float | None
    prefill_speed_up: float | None

    @property
    def size(self) -> str:
        """The image size; "" if the bundle has only one."""
        return self.schedule.partition("@")[2]

    @property
    def is_full(self) -> bool:
        """Whether the chain prunes nothing."""
        return self.schedule.partition("@")[0] == FULL


@dataclass(frozen=True)
class Failure:
    """A missing measurement and the reason."""

    case: str
    reason: str


@dataclass(frozen=True)
class Profiling(Document):
    """All schedules of one bundle.

    source   "trtexec", or the backend that ran here
    apart    graphs were timed separately; a chain is their sum, and its p99 an upper estimate
    rounds   timed questions of each schedule; None if trtexec chose
    machine  hardware and versions
    advice   lines of advice for the reader
    chains   full first, without the schedules of failed graphs
    """

    bundle: str
    model: str
    target: str
    dtype: str
    source: str
    apart: bool
    rounds: int | None
    machine: dict[str, str]
    command: str
    chains: tuple[ChainTimes, ...]
    graphs: tuple[GraphTimes, ...]
    advice: tuple[str, ...]
    failures: tuple[Failure, ...] = ()
    schema: int = 1


def note(apart: bool) -> str:
    """Return how the times were taken, see Profiling.apart."""
    return APART if apart else IN_TURN
