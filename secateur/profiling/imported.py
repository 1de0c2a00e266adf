# SPDX-License-Identifier: Apache-2.0
"""Chains and graphs from a folder of trtexec's results. Graphs were timed separately: a chain is their sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from secateur.bundle.graph_plan import runs
from secateur.bundle.reader import Bundle
from secateur.engines.cases import CASES_FILE, Case, Cases
from secateur.engines.manifest import identity
from secateur.engines.results.console import Console, read_console
from secateur.engines.results.files import Layer, read_layer_info, read_layer_times, read_times, split_profile
from secateur.errors import BadMeasurement
from secateur.profiling.chains import chain, compared, kinds, with_shares
from secateur.profiling.results import STAGES, ChainTimes, Failure, GraphTimes, LayerLine, Spread, spread, total

BOUND = 0.8
"""Ratio of median enqueue to compute time above which trtexec warns; used for results without console output."""

SHOWN = 5
"""Slowest layers that are listed of a graph."""
SELECTING = ("topk", "gather")


@dataclass(frozen=True)
class Imported:
    """Contents of a folder. `machine` has the GPU and the version that trtexec printed."""

    chains: tuple[ChainTimes, ...]
    graphs: tuple[GraphTimes, ...]
    failures: tuple[Failure, ...]
    machine: dict[str, str]


def read_folder(bundle: Bundle, folder: Path, names: Sequence[str]) -> Imported:
    """Read every case of the schedules `names`. Unreadable cases are listed, and their schedules have no chain.

    Raises:
        BadMeasurement: the folder has no cases, belongs to another bundle or lacks a schedule, or no case can be read.
    """
    every, names = _cases(bundle, folder), list(runs(bundle.manifest, names))
    if missing := [name for name in names if not any(name in case.schedules for case in every)]:
        raise BadMeasurement(
            f"{folder / CASES_FILE} has no case of the schedule '{missing[0]}'; leave it out of --schedules, or time "
            "it with trtexec too"
        )
    cases = [case for case in every if set(case.schedules) & set(names)]
    kind = kinds(bundle.manifest)
    graphs, failures, machine = [], [], dict[str, str]()
    for case in cases:
        try:
            console = _console(folder, case)
            graphs.append(_graph(folder, case, console, kind[case.graph], names))
            if console is not None:
                machine |= {"GPU": console.device or "not printed", "TensorRT": str(console.version)}
        except BadMeasurement as problem:
            failures.append(Failure(case.name, str(problem)))
    if not graphs:
        first = f"; the first error is: {failures[0].reason}" if failures else ""
        raise BadMeasurement(f"{folder} has no result of any of its {len(cases)} cases{first}")
    chains = compared([found for name in names if (found := _chain(bundle, name, cases, graphs)) is not None])
    return Imported(chains, with_shares(graphs, chains), tuple(failures), machine)


def timed_schedules(bundle: Bundle, folder: Path) -> list[str]:
    """Return the schedules of the bundle for which the folder has cases.

    Raises:
        BadMeasurement: it has no cases, or belongs to another bundle.
    """
    found = {label.partition("@")[0] for case in _cases(bundle, folder) for label in case.schedules}
    return [name for name in bundle.manifest.schedules if name in found]


def _cases(bundle: Bundle, folder: Path) -> tuple[Case, ...]:
    if not (folder / CASES_FILE).is_file():
        raise BadMeasurement(
            f"{folder} has no {CASES_FILE}; give the folder in which the script of `secateur build --script` ran"
        )
    read = Cases.read(folder)
    if read.bundle != identity(bundle.manifest):
        raise BadMeasurement(f"{folder / CASES_FILE} was written for another export; give its bundle")
    graphs, schedules = {graph.name for graph in bundle.manifest.graphs}, set(runs(bundle.manifest))
    for case in read.cases:
        if case.graph not in graphs or not set(case.schedules) <= schedules:
            raise BadMeasurement(
                f"{folder / CASES_FILE} has the graph '{case.graph}' of {', '.join(case.schedules)}, which this "
                "bundle lacks; give the bundle that it was written for"
            )
    return read.cases


def _console(folder: Path, case: Case) -> Console | None:
    """Return the console output of a case; None if it was not kept.

    Raises:
        BadMeasurement: trtexec failed or was killed, in this case or while building the plan.
    """
    log = folder / case.log
    if not log.exists():
        if (folder / case.times).exists():
            return None
        log = folder / f"{case.graph}.build.log"
        if not log.exists():
            return None
    console = read_console(log)
    if console.passed is not True:
        how = "failed" if console.passed is False else "was killed, or has not ended"
        raise BadMeasurement(f"trtexec {how} ({log}): {console.reason}")
    return console


def _graph(folder: Path, case: Case, console: Console | None, kind: str, names: Sequence[str]) -> GraphTimes:
    times = read_times(folder / case.times)
    compute, enqueue = spread(times.compute), spread(times.enqueue).p50
    bound = enqueue > BOUND * compute.p50
    if console is not None:  # exact, unlike the rounded times file
        enqueue, bound = console.enqueue if console.enqueue is not None else enqueue, console.enqueue_bound
    return GraphTimes(
        name=case.name,
        graph=case.graph,
        kind=kind,
        part=case.kind,
        runs=len(times.compute),
        compute=compute,
        enqueue=enqueue,
        bound=bound,
        shares=dict.fromkeys([name for name in names if name in case.schedules], 0.0),
        layers=_slowest(folder, case),
    )


def _chain(bundle: Bundle, name: str, cases: Sequence[Case], graphs: Sequence[GraphTimes]) -> ChainTimes | None:
    """Return the sums of one schedule; None if a graph before the first token is missing."""
    found = {graph.name: graph for graph in graphs}
    parts: dict[str, list[Spread]] = {"encode": [], "prefill": [], "decode": []}
    stages = dict.fromkeys(STAGES.values(), 0.0)
    lacking = set()
    for case in cases:
        if name not in case.schedules:
            continue
        graph = found.get(case.name)
        if graph is None:
            lacking.add(case.kind)
            continue
        parts[case.kind].append(graph.compute)
        if case.kind != "decode":
            stages[STAGES[graph.kind]] += graph.compute.p50
    if lacking & {"encode", "prefill"} or not parts["prefill"]:
        return None
    decode = total(parts["decode"]) if parts["decode"] and "decode" not in lacking else None
    encode, prefill = total(parts["encode"]), total(parts["prefill"])
    return chain(bundle, name, encode, prefill, total([encode, prefill]), decode, stages)


def _slowest(folder: Path, case: Case) -> tuple[LayerLine, ...]:
    """Return the slowest layers of a case; empty without a file of layer times.

    Raises:
        BadMeasurement: a file is damaged.
    """
    if not (folder / case.layer_times).exists():
        return ()
    known = _layers(folder / case.layers, case.profile)
    layers = read_layer_times(folder / case.layer_times)
    whole = sum(layer.median for layer in layers)
    lines = []
    for layer in sorted(layers, key=lambda layer: -layer.median)[:SHOWN]:
        name = split_profile(layer.name)[0]
        info = known.get(name, Layer(name))
        lines.append(
            LayerLine(name, info.type, info.nodes, layer.median, layer.median / whole if whole else 0.0, _selects(info))
        )
    return tuple(lines)


def _layers(path: Path, profile: int) -> dict[str, Layer]:
    """Return the layers of one optimization profile by name; empty without a file."""
    if not path.exists():
        return {}
    return {layer.name: layer for layer in read_layer_info(path) if layer.profile in (None, profile)}


def _selects(layer: Layer) -> bool:
    words = " ".join((layer.name, layer.type, layer.tactic, *layer.nodes)).lower()
    return any(word in words for word in SELECTING)
