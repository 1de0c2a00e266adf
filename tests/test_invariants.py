# SPDX-License-Identifier: Apache-2.0
"""Invariants of a bundle, on the tiny LLaVA with every method."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from secateur import methods, plugins
from secateur.bundle.schedule import ENCODER_GATES
from secateur.bundle.schedule_file import read_schedule
from secateur.calibration.against_random import compared
from secateur.calibration.samples import Sample
from secateur.errors import SecateurWarning
from secateur.export.bundle import Exported, ExportPlan, export
from secateur.export.targets import target
from secateur.families.base import Family
from secateur.runtime import Pipeline
from secateur.runtime.receipt import Answer
from secateur.selection.selector import GateInputs, GateSite
from tests import checks
from tests.checks import LONGER, QUESTION, close, picture
from tests.conftest import COMPRESSION, METHODS, VARIANTS
from tests.reference import Seen, entering, kept_by_layer, masked_run

SCHEDULES = [*METHODS, *VARIANTS]


@pytest.fixture(scope="module")
def ort(tiny_bundle: tuple[Path, Exported]) -> Iterator[Pipeline]:
    with Pipeline.load(tiny_bundle[0]) as vlm:
        yield vlm


@pytest.fixture(scope="module")
def eager(tiny_bundle: tuple[Path, Exported], tiny: Family) -> Iterator[Pipeline]:
    from secateur.bundle.reader import Bundle
    from secateur.runtime.backends.torch import Backend

    bundle = Bundle.load(tiny_bundle[0])
    with Pipeline(bundle, Backend(bundle, family=tiny)) as vlm:
        yield vlm


def test_full_equals_generate(ort: Pipeline, tiny: Family) -> None:
    checks.check_full(ort, tiny)


@pytest.mark.parametrize("method", METHODS)
def test_keeping_everything_equals_full(ort: Pipeline, method: str) -> None:
    full = ort.ask(picture(1), QUESTION, schedule="full", max_new_tokens=8)
    pruned = ort.ask(picture(1), QUESTION, schedule=f"{method}-all", max_new_tokens=8)
    assert pruned.kept and all(len(kept) == ort.bundle.manifest.layout.vision_tokens for kept in pruned.kept)
    assert pruned.tokens == full.tokens
    assert close(pruned.first_logits, full.first_logits)


@pytest.mark.parametrize("method", SCHEDULES)
def test_something_is_pruned(ort: Pipeline, method: str) -> None:
    """Every method meets the budget of half the tokens, and the receipt shows it."""
    answer = ort.ask(picture(0), QUESTION, schedule=method, max_new_tokens=1)
    tokens = ort.bundle.manifest.layout.vision_tokens
    step = 0.06 if method == "downsample" else 0.01  # a smaller image has a whole number of rows and columns
    assert abs(ort.bundle.schedule(method).budget.compression - COMPRESSION) < step
    assert all(
        gate.applied == gate.requested == len(kept)
        for gate, kept in zip(answer.receipt.gates, answer.kept, strict=True)
    )
    assert answer.kept and len(answer.kept[-1]) < tokens
    full = ort.ask(picture(0), QUESTION, schedule="full", max_new_tokens=1)
    assert answer.receipt.cache_bytes < full.receipt.cache_bytes
    assert not close(answer.first_logits, full.first_logits)


@pytest.mark.parametrize("method", [*SCHEDULES, "full"])
def test_the_time_to_the_first_token_counts_every_graph(ort: Pipeline, method: str) -> None:
    """This includes gates in the encoder, and gates that replace it."""
    spent = ort.ask(picture(0), QUESTION, schedule=method, max_new_tokens=1).timings
    names = {graph.name for graph in ort.bundle.manifest.graphs}
    graphs = sum(milliseconds for name, milliseconds in spent.items() if name in names)
    assert spent["first_token"] == pytest.approx(spent["preprocess"] + spent["encode"] + spent["prefill"])
    assert graphs <= spent["encode"] + spent["prefill"]
    gates = [gate.graph for gate in ort.bundle.manifest.schedules[method].gates]
    assert set(gates) <= spent.keys() and ("vision" in spent) == (method != "downsample")


@pytest.mark.parametrize("method", SCHEDULES)
@pytest.mark.parametrize("seed", range(2))
def test_pruned_equals_masked(ort: Pipeline, tiny: Family, method: str, seed: int) -> None:
    """Prefill and every decode step."""
    checks.check_pruned(ort, tiny, method, seed)
    checks.check_decode(ort, tiny, method, seed)


@pytest.mark.parametrize("method", SCHEDULES)
def test_gates_read_what_they_should(ort: Pipeline, tiny: Family, method: str) -> None:
    """Selectors choose the same tokens from the rows and attention tensors that transformers computes."""
    questions = [QUESTION, LONGER, "w2"]
    answers = ort.ask([picture(i) for i in range(3)], questions, schedule=method, max_new_tokens=1)
    schedule = read_schedule(ort.bundle.path(f"schedules/{method}.json"))
    selector_class = plugins.load(methods, schedule.method, "method").Method
    start, compact = tiny.layout.image_start, schedule.positions == "compact"
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        rows, pixels = checks.tokenizer(tiny).first(question), checks.pixels(tiny, (picture(i),))
        entered = entering(tiny, pixels, schedule)
        route = schedule.gates[0].kind == "route"
        kept = kept_by_layer(ort.bundle.manifest.schedules[method].gates, answer.kept)
        vision = None if entered is None else entered[1]
        seen = masked_run(tiny, pixels, rows, kept, compact=compact, route=route, vision=vision)
        text = [start + tiny.layout.vision_tokens + row for row in range(len(rows))]
        alive = np.arange(tiny.layout.vision_tokens)
        for gate, found in zip(schedule.gates, answer.kept, strict=True):
            if gate.kind in ENCODER_GATES:
                assert entered is not None and tuple(entered[0]) == found
                alive = np.array(entered[0])
                continue
            stay = [*range(start), *(start + alive), *text]
            site = GateSite(
                gate,
                len(alive),
                start,
                tiny.layout.grid,
                tiny.dimensions,
                schedule.tensors,
                tiny.decoder.projections(gate.layer) if route else None,
            )
            given = GateInputs(
                hidden_states=seen.before[gate.layer][:, stay],
                position_ids=torch.arange(len(stay))[None] if compact else torch.tensor([stay]),
                attention_mask=torch.ones(1, len(stay), dtype=torch.int64),
                vision_index=torch.from_numpy(alive)[None],
                image_start=start,
                read=_read(seen, gate.layer, stay, text) if gate.layer else {},
            )
            chosen = alive[selector_class.choose(site)(given)[0].numpy()]
            assert tuple(chosen.tolist()) == found, (method, gate.layer)
            alive = alive if route else chosen


def _read(seen: Seen, layer: int, stay: list[int], text: list[int]) -> dict[str, torch.Tensor]:
    """Return the tensors that the segment before `layer` passes to a selector."""
    query, key = seen.query[layer - 1][0], seen.key[layer - 1][0]
    return {
        "query": query[:, -1][None],
        "text_query": query[:, text].mean(dim=1)[None],
        "queries": query[:, stay].transpose(0, 1)[:, None],
        "key": key[:, stay].transpose(0, 1)[:, None],
        "layer_input": seen.before[layer - 1][:, stay],
    }


def test_calibration_compares_what_the_bundle_does(ort: Pipeline, tiny: Family, tmp_path: Path) -> None:
    """The divergence of the next token from `full` is that of the bundle's answers, with every method."""
    names = [name for name in SCHEDULES if name not in ("random", "vtw")]
    schedules = [read_schedule(ort.bundle.path(f"schedules/{name}.json")) for name in names]
    samples = [Sample(picture(i), question) for i, question in enumerate((QUESTION, LONGER))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecateurWarning)
        found = compared(tiny, schedules, samples, work=tmp_path)
    for name, schedule in zip(names, found, strict=True):
        every = [
            divergence(*(ort.ask(s.image, s.question, schedule=n, max_new_tokens=1) for n in ("full", name)))
            for s in samples
        ]
        block = schedule.calibration["against_random"]
        assert block["samples"] == 2 and block["random"] > 0
        assert block["method"] == pytest.approx(np.mean(every), rel=0.02, abs=2e-6), name
    assert not list(tmp_path.iterdir())


def divergence(full: Answer, pruned: Answer) -> float:
    """Return KL(full || pruned) of the first token in nats."""
    logs = [answer.first_logits.astype(np.float64) for answer in (full, pruned)]
    one, other = (log - np.log(np.exp(log - log.max()).sum()) - log.max() for log in logs)
    return float((np.exp(one) * (one - other)).sum())


@pytest.mark.parametrize("method", [*SCHEDULES, "full"])
def test_backends_agree(ort: Pipeline, eager: Pipeline, method: str) -> None:
    ours = ort.ask(picture(3), LONGER, schedule=method, max_new_tokens=6)
    theirs = eager.ask(picture(3), LONGER, schedule=method, max_new_tokens=6)
    assert ours.kept == theirs.kept
    assert ours.tokens == theirs.tokens
    assert close(ours.first_logits, theirs.first_logits)


@pytest.mark.parametrize("method", [*SCHEDULES, "full"])
def test_follow_up_equals_one_long_conversation(ort: Pipeline, tiny: Family, method: str) -> None:
    checks.check_follow_up(ort, tiny, method)


@pytest.mark.parametrize("method", [*SCHEDULES, "full"])
def test_a_batch_equals_single_runs(ort: Pipeline, tiny: Family, method: str) -> None:
    checks.check_batch(ort, tiny, method)


def test_two_exports_are_equal(tiny: Family, tiny_bundle: tuple[Path, Exported], tmp_path: Path) -> None:
    """Equal graphs and schedules have equal bytes, independent of the rest of the bundle."""
    folder, first = tiny_bundle
    names = {"alvts"} & set(METHODS) or {METHODS[0]}
    some = [read_schedule(folder / f"schedules/{name}.json") for name in sorted(names)]
    second = export([ExportPlan(tiny, tuple(some))], target("cpu"), tmp_path / "again", verify=False).manifest
    same = [graph for graph in second.graphs if graph in first.manifest.graphs]
    assert len(same) > len(second.schedules)
    files = [name for graph in same for name in (graph.file, f"{graph.file}.data")] + [
        s.file for s in second.schedules.values()
    ]
    compared = {name: digest for name, digest in second.files.items() if name in files}
    assert compared == {name: first.manifest.files[name] for name in compared}
