# SPDX-License-Identifier: Apache-2.0
"""What a profile found, in milliseconds: one document per run, the same whether it was timed here or by trtexec."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.profiling.percentiles import Spread
from secateur.report.document import Document

STAGES = {"vision": "vision", "projector": "projector", "embed": "embed", "segment": "segments", "gate": "gates"}
"""Stages of the time to first token, by the kind of the graph; "preprocess" is another."""


@dataclass(frozen=True)
class LayerLine:
    """One of the slowest layers of a graph.

    type, nodes  what it is made of, "" and empty where the engine has no detailed layers
    median       milliseconds
    share        of the layers of its graph
    selects      a top-k or gather is in it
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

    name     of the measurement
    kind     vision (a smaller image too), projector, embed, segment or gate
    part     encode (once per image), prefill (once per question) or decode (once per generated token)
    runs     that were timed
    compute  where the work is done
    enqueue  median of the time that the host took to give the work to the GPU; None where trtexec did not time it
    bound    the GPU may wait for the host: trtexec warns of it, or would by its rule
    shares   of the time to first token of each schedule that runs it, p50 of p50; for `decode` of its decode step
    layers   the slowest ones
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
    """One schedule from image to answer. `full` is the first of a profile and what the others are compared with.

    schedule             its name; where the bundle has several image sizes, @WIDTHxHEIGHT follows, and each size has
                         a chain of its own, compared with full at that size
    average_tokens       vision tokens of an average decoder layer
    prefill_flops_ratio  of the vision rows in the decoder, over the unpruned value, as the schedule says
    encode, prefill      from pixels to vision tokens, from there to the first logits
    first_token          both, and preprocessing where it was timed
    decode               one step of one token; None where none was timed
    stages               p50 of each stage of the time to first token
    gates_share          of the time to first token
    speed_up             time to first token of full over that of this one; None where full was not timed
    prefill_speed_up     the same of the prefill alone
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


@dataclass(frozen=True)
class Failure:
    """A measurement that is missing, and why."""

    case: str
    reason: str


@dataclass(frozen=True)
class Profiling(Document):
    """All schedules of one bundle.

    source   "trtexec", or the backend that ran here
    apart    graphs were timed one by one; a chain is their sum, and its p99 an upper estimate
    rounds   timed questions of each schedule; None where trtexec decided
    machine  what it ran on, and versions
    advice   what a reader should know or mend
    chains   full first; a schedule of which a graph failed is left out
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
