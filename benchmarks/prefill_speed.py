# SPDX-License-Identifier: Apache-2.0
"""Compare prefill time with FLOPs: one graph, the chain without gates and the pruned chain, alternating in one process.

    python benchmarks/prefill_speed.py --rounds 30

The model has the shape of LLaVA and random weights: time does not depend on their values.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from transformers import CLIPVisionConfig, LlamaConfig

from secateur.bundle.layout import Dimensions
from secateur.bundle.schedule import Schedule
from secateur.calibration.capture import capture
from secateur.cli import one_line
from secateur.errors import InputError
from secateur.export.bundle import ExportPlan, export
from secateur.export.targets import target
from secateur.families.llava import Family
from secateur.methods.btp import Method
from secateur.methods.random import Method as Random
from secateur.runtime import Answer, Pipeline
from secateur.selection.budget import BudgetRequest
from secateur.terminal import tables

QUESTION = " ".join(f"w{i}" for i in range(20))


def model(width: int, layers: int, grid: int) -> Family:
    """Build a random LLaVA: a decoder of `layers` x `width`, `grid` x `grid` vision tokens, a small encoder."""
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=8 * grid,
        patch_size=8,
    )
    text = LlamaConfig(
        hidden_size=width,
        intermediate_size=int(width * 2.6875),  # LLaMA-7B's 11008 / 4096
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        vocab_size=1024,
        max_position_embeddings=2048,
    )
    return Family.random(vision, text)


def decoder_flops(rows: list[int], d: Dimensions) -> int:
    """Return the FLOPs of all decoder layers for these rows per layer, text included; attention is dense."""
    attention = d.heads * d.head_dim
    weights = 2 * d.width * attention + 2 * d.width * d.kv_heads * d.head_dim + 3 * d.width * d.mlp_width
    return sum(2 * n * weights + 4 * n * n * attention for n in rows)


def rows_per_layer(answer: Answer, vlm: Pipeline) -> list[int]:
    segments = vlm.bundle.manifest.segments
    spans = [segment.layers or (0, 0) for segment in segments]
    return [n for n, (first, end) in zip(answer.receipt.segment_rows, spans, strict=True) for _ in range(end - first)]


def decoder_milliseconds(answer: Answer, vlm: Pipeline) -> tuple[float, float]:
    """Return the milliseconds of (segments and gates, gates alone)."""
    kinds = {graph.name: graph.kind for graph in vlm.bundle.manifest.graphs}
    spent = {k: sum(ms for name, ms in answer.timings.items() if kinds.get(name) == k) for k in ("segment", "gate")}
    return spent["segment"] + spent["gate"], spent["gate"]


def measure(family: Family, schedule: Schedule, rounds: int, threads: int | None) -> dict[str, Any]:
    """Alternate the variants `rounds` times after a warm-up; return medians and quartiles in ms.

    The random control prunes as much without scoring, so it separates the cost of the chain from that of the method.
    """
    control = Random().like(schedule)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*family.bucket, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        export([ExportPlan(family, ())], target("cpu"), Path(folder) / "one", verify=False)
        export([ExportPlan(family, (schedule, control))], target("cpu"), Path(folder) / "chain", verify=False)
        with (
            Pipeline.load(Path(folder) / "one", threads=threads) as one,
            Pipeline.load(Path(folder) / "chain", threads=threads) as chain,
        ):
            runs = {
                "one graph": (one, "full"),
                "chain, full": (chain, "full"),
                "chain, pruned": (chain, schedule.name),
                "chain, random": (chain, control.name),
            }
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
            flops = {}
            for turn in range(rounds + 3):
                for name, (vlm, which) in runs.items():
                    answer = vlm.ask(image, QUESTION, schedule=which, max_new_tokens=1)
                    flops[name] = decoder_flops(rows_per_layer(answer, vlm), vlm.bundle.manifest.dimensions)
                    if turn >= 3:
                        times[name].append(decoder_milliseconds(answer, vlm))
    total = {name: np.array([t for t, _ in pairs]) for name, pairs in times.items()}
    gates = np.array([g / t for t, g in times["chain, pruned"]])
    speed_up = total["chain, full"] / total["chain, pruned"]
    unscored = total["chain, full"] / total["chain, random"]
    flops_ratio = flops["chain, full"] / flops["chain, pruned"]
    return {
        "milliseconds": {name: _quartiles(values) for name, values in total.items()},
        "speed_up": _quartiles(speed_up),
        "flops_ratio": flops_ratio,
        "speed_up_over_flops_ratio": float(np.median(speed_up)) / flops_ratio,
        "random_over_flops_ratio": float(np.median(unscored)) / flops_ratio,
        "gates_share": _quartiles(gates),
        "chain_over_one_graph": _quartiles(total["chain, full"] / total["one graph"]),
    }


def _quartiles(values: np.typing.NDArray[np.float64]) -> dict[str, float]:
    low, median, high = np.percentile(values, (25, 50, 75))
    return {"median": float(median), "low": float(low), "high": float(high)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--decoder-layers", type=int, default=8)
    parser.add_argument("--grid", type=int, default=24, help="vision tokens per side (default: 24)")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    for name, least in (("width", 64), ("decoder_layers", 2), ("grid", 1), ("rounds", 1), ("threads", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
    if arguments.width % 64:
        raise InputError(f"--width is {arguments.width}; it must be a multiple of 64")
    family = model(arguments.width, arguments.decoder_layers, arguments.grid)
    schedule = Method().calibrate(capture(family, [], frozenset())[0], BudgetRequest())
    found = measure(family, schedule, arguments.rounds, arguments.threads)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    console = Console()
    gates = ", ".join(f"{gate.layer}: {gate.keep}" for gate in schedule.gates)
    shown = tables.table(f"Decoder prefill, gates {gates}", "variant", "median ms", "quartiles")
    for name, spread in found["milliseconds"].items():
        shown.add_row(name, f"{spread['median']:.1f}", f"{spread['low']:.1f} to {spread['high']:.1f}")
    console.print(shown)
    console.print(
        f"speed-up {found['speed_up']['median']:.2f}, FLOPs ratio {found['flops_ratio']:.2f}, "
        f"speed-up over FLOPs ratio {found['speed_up_over_flops_ratio']:.2f} "
        f"(random choice: {found['random_over_flops_ratio']:.2f})\n"
        f"gates' share of the pruned prefill {found['gates_share']['median']:.1%}, "
        f"chain over one graph {found['chain_over_one_graph']['median']:.3f}"
    )


if __name__ == "__main__":
    sys.exit(one_line(main))
