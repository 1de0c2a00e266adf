# SPDX-License-Identifier: Apache-2.0
"""Advice based on the times, one line per topic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
    lines = [
        _line(
            "No real speed-up over full: {}. The prefill is too short here, or the gates cost what pruning saves.",
            (
                f"{c.schedule} ({c.speed_up:.2f}x, gates {100 * c.gates_share:.0f} % of its time)"
                for c in chains
                if not c.is_full and c.speed_up is not None and c.speed_up <= 1
            ),
        ),
        _line(
            "The GPU may wait for the host (enqueue over compute): {}. Capture CUDA graphs.",
            (f"{g.name} ({g.enqueue:.3f} over {g.compute.p50:.3f} ms)" for g in graphs if g.bound),
        ),
        _line(
            "A top-k or gather is the slowest layer of {}.",
            (
                f"{g.name} ({100 * g.layers[0].share:.0f} % of the gate)"
                for g in graphs
                if g.kind == "gate" and g.layers and g.layers[0].selects
            ),
        ),
    ]
    if apart:
        varying = sorted(((g.compute.variation or 0, g.name) for g in graphs), reverse=True)
        lines.append(
            _line(
                f"GPU times vary by more than {100 * UNSTABLE_GPU:g} %: {{}}. Fix the clocks and time again: on a "
                "Jetson `nvpmodel -m 0 && jetson_clocks`, elsewhere `nvidia-smi -lgc`.",
                (f"{name} ({100 * variation:.1f} %)" for variation, name in varying if variation > UNSTABLE_GPU),
            )
        )
    else:
        changing = [(c.schedule, v) for c in chains if (v := c.first_token.variation or 0) > UNSTABLE_HERE]
        lines += [
            _line(
                f"Times vary by more than {100 * UNSTABLE_HERE:g} %: {{}}. Stop other work on this machine, fix its "
                "clocks, or add --rounds.",
                (f"{name} ({100 * variation:.0f} %)" for name, variation in changing),
            ),
            _line(
                "No decode step was timed for {}: answers of one token. Use another --prompt.",
                (c.schedule for c in chains if c.decode is None),
            ),
        ]
    return tuple(filter(None, lines))


def _line(text: str, items: Iterable[str]) -> str:
    """Return `text` with the first few items and the number of further ones; "" without items."""
    every = list(items)
    more = f" and {len(every) - NAMED} more" if len(every) > NAMED else ""
    return text.format(", ".join(every[:NAMED]) + more) if every else ""
