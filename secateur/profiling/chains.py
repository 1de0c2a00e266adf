# SPDX-License-Identifier: Apache-2.0
"""Kinds of graphs, figures of a chain, and the profile of a bundle, for both sources of times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from secateur.bundle.graph_plan import runs
from secateur.bundle.manifest import Manifest
from secateur.bundle.reader import Bundle
from secateur.engines.trtexec import TRTEXEC
from secateur.profiling.advice import advice
from secateur.profiling.results import ChainTimes, Failure, GraphTimes, Profiling, Spread


def kinds(manifest: Manifest) -> dict[str, str]:
    """Return the kind of each graph by name. The gate of a smaller image is the encoder at another size: vision."""
    gates = (gate for run in runs(manifest).values() for gate in run.manifest.schedules[run.schedule].gates)
    smaller = {gate.graph for gate in gates if gate.kind == "downsample"}
    return {graph.name: "vision" if graph.name in smaller else graph.kind for graph in manifest.graphs}


def chain(
    bundle: Bundle,
    name: str,
    encode: Spread,
    prefill: Spread,
    first_token: Spread,
    decode: Spread | None,
    stages: Mapping[str, float],
) -> ChainTimes:
    """Return the figures of one label of `graph_plan.runs`, without the comparison with full."""
    run = runs(bundle.manifest)[name]
    schedule = bundle.schedule(run.schedule, run.manifest.layout.size)
    return ChainTimes(
        schedule=name,
        method=schedule.method,
        average_tokens=schedule.budget.average_tokens,
        prefill_flops_ratio=schedule.budget.prefill_flops_ratio,
        encode=encode,
        prefill=prefill,
        first_token=first_token,
        decode=decode,
        stages=dict(stages),
        gates_share=stages.get("gates", 0.0) / first_token.p50 if first_token.p50 else 0.0,
        speed_up=None,
        prefill_speed_up=None,
    )


def compared(chains: Sequence[ChainTimes]) -> tuple[ChainTimes, ...]:
    """Return the chains with their speed-up over full of the same image size, if full is among them."""
    full = {one.size: one for one in chains if one.is_full}
    return tuple(
        replace(
            one,
            speed_up=_ratio(full[one.size].first_token, one.first_token),
            prefill_speed_up=_ratio(full[one.size].prefill, one.prefill),
        )
        if one.size in full
        else one
        for one in chains
    )


def _ratio(full: Spread, this: Spread) -> float | None:
    return full.p50 / this.p50 if this.p50 else None


def with_shares(graphs: Sequence[GraphTimes], chains: Sequence[ChainTimes]) -> tuple[GraphTimes, ...]:
    """Return the graphs with their share of each chain. The keys of `shares` stay, the values are replaced."""
    whole = {
        (one.schedule, decode): spread.p50
        for one in chains
        for decode, spread in ((False, one.first_token), (True, one.decode))
        if spread is not None and spread.p50
    }
    return tuple(
        replace(
            graph,
            shares={
                name: graph.compute.p50 / whole[name, graph.part == "decode"]
                for name in graph.shares
                if (name, graph.part == "decode") in whole
            },
        )
        for graph in graphs
    )


def profiling(
    bundle: Bundle,
    source: str,
    rounds: int | None,
    machine: dict[str, str],
    command: str,
    chains: tuple[ChainTimes, ...],
    graphs: tuple[GraphTimes, ...],
    failures: tuple[Failure, ...] = (),
) -> Profiling:
    """Return the profile of a bundle with advice; see `Profiling` for the arguments."""
    apart = source == TRTEXEC
    return Profiling(
        bundle=bundle.root.name,
        model=bundle.manifest.source,
        target=bundle.manifest.target,
        dtype=bundle.manifest.dtype,
        source=source,
        apart=apart,
        rounds=rounds,
        machine=machine,
        command=command,
        chains=chains,
        graphs=graphs,
        advice=advice(chains, graphs, apart),
        failures=failures,
    )
