# SPDX-License-Identifier: Apache-2.0
"""Advice based on the times, one line per topic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from secateur.profiling.chains import is_full
from secateur.profiling.results import ChainTimes, GraphTimes

UNSTABLE_GPU = 0.025
"""Variation above which trtexec reports unstable GPU times (since about 10.13)."""
UNSTABLE_HERE = 0.15
"""Limit for the variation of the time to first token in this process, where other work always disturbs a little."""
NAMED = 3


def advice(chains: Sequence[ChainTimes], graphs: Sequence[GraphTimes], apart: bool) -> tuple[str, ...]:
    """Return lines of advice, the most important first.

    apart   the graphs were timed separately by trtexec, on a GPU
    """
    lines = [*_slow(chains), *_enqueue(graphs), *_selecting(graphs)]
    lines += _unstable_gpu(graphs) if apart else _unstable(chains)
    if not apart and (silent := [chain.schedule for chain in chains if chain.decode is None]):
        lines.append(f"No decode step was timed for {_listed(silent)}: answers of one token. Use another --prompt.")
    return tuple(lines)


def _slow(chains: Sequence[ChainTimes]) -> list[str]:
    slow = [c for c in chains if not is_full(c) and c.speed_up is not None and c.speed_up <= 1]
    if not slow:
        return []
    named = _listed(f"{c.schedule} ({c.speed_up:.2f}x, gates {100 * c.gates_share:.0f} % of its time)" for c in slow)
    return [
        f"No real speed-up over full: {named}. The prefill is too short here, or the gates cost what pruning saves."
    ]


def _enqueue(graphs: Sequence[GraphTimes]) -> list[str]:
    bound = [g for g in graphs if g.bound]
    if not bound:
        return []
    named = _listed(f"{g.name} ({g.enqueue:.3f} over {g.compute.p50:.3f} ms)" for g in bound)
    return [f"The GPU may wait for the host (enqueue over compute): {named}. Capture CUDA graphs."]


def _selecting(graphs: Sequence[GraphTimes]) -> list[str]:
    found = [g for g in graphs if g.kind == "gate" and g.layers and g.layers[0].selects]
    if not found:
        return []
    named = _listed(f"{g.name} ({100 * g.layers[0].share:.0f} % of the gate)" for g in found)
    return [f"A top-k or gather is the slowest layer of {named}."]


def _unstable_gpu(graphs: Sequence[GraphTimes]) -> list[str]:
    shaky = sorted(
        ((v, g.name) for g in graphs if (v := g.compute.variation) is not None and v > UNSTABLE_GPU), reverse=True
    )
    if not shaky:
        return []
    named = _listed(f"{name} ({100 * variation:.1f} %)" for variation, name in shaky)
    return [
        f"GPU times vary by more than {100 * UNSTABLE_GPU:g} %: {named}. Fix the clocks and time again: on a Jetson "
        "`nvpmodel -m 0 && jetson_clocks`, elsewhere `nvidia-smi -lgc`."
    ]


def _unstable(chains: Sequence[ChainTimes]) -> list[str]:
    shaky = [c for c in chains if (v := c.first_token.variation) is not None and v > UNSTABLE_HERE]
    if not shaky:
        return []
    named = _listed(f"{c.schedule} ({100 * (c.first_token.variation or 0):.0f} %)" for c in shaky)
    return [
        f"Times vary by more than {100 * UNSTABLE_HERE:g} %: {named}. Stop other work on this machine, fix its clocks, "
        "or add --rounds."
    ]


def _listed(items: Iterable[str]) -> str:
    """Return the first few items, and the number of further ones."""
    every = list(items)
    more = f" and {len(every) - NAMED} more" if len(every) > NAMED else ""
    return ", ".join(every[:NAMED]) + more
