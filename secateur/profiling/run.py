# SPDX-License-Identifier: Apache-2.0
"""Profile from a backend in this process, or from results of trtexec on any device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from secateur.engines.trtexec import TRTEXEC
from secateur.machine import machine
from secateur.profiling.advice import advice
from secateur.profiling.clocked import ClockSettings, clock
from secateur.profiling.imported import read_folder
from secateur.profiling.results import ChainTimes, Failure, GraphTimes, Profiling
from secateur.progress import Progress
from secateur.runtime import Bundle, Pipeline
from secateur.runtime.image import ImageLike
from secateur.version import __version__


def here(
    vlm: Pipeline,
    backend: str,
    names: Sequence[str],
    image: ImageLike | None,
    prompt: str,
    settings: ClockSettings,
    progress: Progress,
    command: str,
) -> Profiling:
    """Profile the schedules `names`, full first, in this process. Without an image, noise is used.

    backend, command   only recorded in the result

    Raises:
        BadImage, BadPrompt: as Pipeline.ask.
    """
    chains, graphs = clock(vlm, image, prompt, names, settings, progress)
    on = machine(vlm.describe())
    return _profiling(vlm.bundle, backend, settings.rounds, on, command, chains, graphs)


def from_trtexec(bundle: Bundle, names: Sequence[str], folder: Path, command: str) -> Profiling:
    """Profile the schedules `names`, full first, from the results of trtexec in `folder`.

    Raises:
        BadMeasurement: there is no result, or it belongs to another bundle.
    """
    found = read_folder(bundle, folder, names)
    on = {**found.machine, "secateur": __version__}
    return _profiling(bundle, TRTEXEC, None, on, command, found.chains, found.graphs, found.failures)


def _profiling(
    bundle: Bundle,
    source: str,
    rounds: int | None,
    on: dict[str, str],
    command: str,
    chains: tuple[ChainTimes, ...],
    graphs: tuple[GraphTimes, ...],
    failures: tuple[Failure, ...] = (),
) -> Profiling:
    apart = source == TRTEXEC
    return Profiling(
        bundle=bundle.root.name,
        model=bundle.manifest.source,
        target=bundle.manifest.target,
        dtype=bundle.manifest.dtype,
        source=source,
        apart=apart,
        rounds=rounds,
        machine=on,
        command=command,
        chains=chains,
        graphs=graphs,
        advice=advice(chains, graphs, apart),
        failures=failures,
    )
