# SPDX-License-Identifier: Apache-2.0
"""Each kind of advice is given once, and only if it applies."""

from __future__ import annotations

from dataclasses import replace

from secateur.profiling.advice import advice
from secateur.profiling.results import Spread
from tests.profiling import made

FINE = made.profiling()
STEADY = tuple(
    replace(g, compute=replace(g.compute, variation=0.01), enqueue=0.1, bound=False, layers=()) for g in FINE.graphs
)


def test_no_advice() -> None:
    assert advice(FINE.chains, STEADY, True) == ()


def test_a_pruned_schedule_that_is_not_faster() -> None:
    full, pruned = FINE.chains
    (line,) = advice((full, replace(pruned, speed_up=0.97, gates_share=0.43)), STEADY, True)
    assert line.startswith("No real speed-up over full: btp-22 (0.97x, gates 43 % of its time).")
    assert advice((full, replace(pruned, speed_up=None)), STEADY, True) == ()


def test_graphs_that_wait_for_the_host() -> None:
    bound = [replace(g, enqueue=g.compute.p50 * 2, bound=True) for g in STEADY]
    (line,) = advice(FINE.chains, bound, True)
    assert "vision.encode (8.000 over 4.000 ms)" in line and "and 2 more" in line and "CUDA graphs" in line
    assert "vision.encode" in line and advice(FINE.chains, [replace(g, enqueue=9.0) for g in STEADY], True) == ()


def test_unstable_gpu_clocks() -> None:
    (line,) = advice(FINE.chains, [replace(STEADY[0], compute=Spread(1, 1, 1, 1, 0.071)), *STEADY[1:]], True)
    assert "vision.encode (7.1 %)" in line and "nvpmodel -m 0 && jetson_clocks" in line and "nvidia-smi -lgc" in line


def test_other_work_on_this_machine() -> None:
    shaky = [replace(c, decode=c.first_token, first_token=Spread(1, 1, 1, 1, 0.5)) for c in FINE.chains]
    (line,) = advice(shaky, STEADY, False)
    assert line.startswith("Times vary by more than 15 %: full (50 %), btp-22 (50 %).") and "--rounds" in line


def test_answers_of_one_token() -> None:
    (line,) = advice(FINE.chains, STEADY, False)
    assert line.startswith("No decode step was timed for btp-22") and "--prompt" in line


def test_a_top_k_that_costs_most_of_a_gate() -> None:
    with_layers = [replace(g, layers=FINE.graphs[3].layers if g.kind == "gate" else ()) for g in STEADY]
    (line,) = advice(FINE.chains, with_layers, True)
    assert line == "A top-k or gather is the slowest layer of btp-22.0.prefill (75 % of the gate)."
