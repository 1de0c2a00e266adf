# SPDX-License-Identifier: Apache-2.0
"""What must always be true of a bundle, on the tiny model of every family with every method."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from secateur import methods, plugins
from secateur.artifacts import ENCODER_GATES
from secateur.calibration.files import read_schedule
from secateur.export.bundle import Exported, export
from secateur.export.targets import target
from secateur.methods.base import GateInputs, GateSite
from secateur.models.base import Family
from secateur.runtime import Pipeline
from secateur.runtime.preprocess import pixel_values
from secateur.runtime.prompt import Tokenizer
from tests.conftest import COMPRESSION, METHODS, VARIANTS
from tests.reference import Seen, entering, kept_by_layer, masked_logits, masked_run

SCHEDULES = [*METHODS, *VARIANTS]
QUESTION = "w1 w5 w9 w3"
LONGER = "w4 w4 w8 w2 w7 w30"


@pytest.fixture(scope="module")
def ort(tiny_bundle: tuple[Path, Exported]) -> Iterator[Pipeline]:
    with Pipeline.load(tiny_bundle[0]) as vlm:
        yield vlm


@pytest.fixture(scope="module")
def eager(tiny_bundle: tuple[Path, Exported], tiny: Family) -> Iterator[Pipeline]:
    from secateur.runtime.backends.torch import Backend
    from secateur.runtime.bundle import Bundle

    bundle = Bundle.load(tiny_bundle[0])
    with Pipeline(bundle, Backend(bundle, family=tiny)) as vlm:
        yield vlm


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))


def tail(family: Family, question: str) -> list[int]:
    import copy

    return Tokenizer(family.prompt, copy.deepcopy(family.tokenizer.backend_tokenizer)).first(question)


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max())


def reference(vlm: Pipeline, family: Family, image: Image.Image, name: str, rows: list[int], kept: Any) -> np.ndarray:
    """Logits [S, V] of the masked reference for what an answer kept; what the encoder's gate kept must be the same."""
    schedule, pixels = vlm.bundle.schedule(name), pixel_values(image, family.preprocess)
    seen = entering(family, pixels, read_schedule(vlm.bundle.path(f"schedules/{name}.json")))
    if seen is not None:
        assert seen[0] == list(kept[0])
    return masked_logits(
        family,
        pixels,
        rows,
        kept_by_layer(vlm.bundle.manifest.schedules[name].gates, kept),
        compact=schedule.positions == "compact",
        route=any(gate.kind == "route" for gate in schedule.gates),
        vision=None if seen is None else seen[1],
    )


def test_full_equals_generate(ort: Pipeline, tiny: Family) -> None:
    image = picture(0)
    prompt = [*tiny.prompt.head, *[3] * tiny.layout.vision_tokens, *tail(tiny, QUESTION)]
    assert tiny.model.config.image_token_id == 3
    pixels = torch.from_numpy(pixel_values(image, tiny.preprocess))
    expected = tiny.model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        pixel_values=pixels,
        max_new_tokens=12,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    answer = ort.ask(image, QUESTION, schedule="full", max_new_tokens=12)
    assert list(answer.tokens) == expected.sequences[0, len(prompt) :].tolist()
    assert close(answer.first_logits, expected.logits[0][0].numpy())
    assert answer.kept == ()


@pytest.mark.parametrize("method", METHODS)
def test_keeping_everything_equals_full(ort: Pipeline, method: str) -> None:
    full = ort.ask(picture(1), QUESTION, schedule="full", max_new_tokens=8)
    pruned = ort.ask(picture(1), QUESTION, schedule=f"{method}-all", max_new_tokens=8)
    assert pruned.kept and all(len(kept) == ort.bundle.manifest.layout.vision_tokens for kept in pruned.kept)
    assert pruned.tokens == full.tokens
    assert close(pruned.first_logits, full.first_logits)


@pytest.mark.parametrize("method", SCHEDULES)
def test_something_is_pruned(ort: Pipeline, method: str) -> None:
    """About half, as asked: every method spends the same budget. And it shows in the receipt."""
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
    """Gates in the encoder, and what stands in its place, too."""
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
    """Prefill and every decode step: step t is a fresh masked run of the longer sequence with the same kept indices."""
    image = picture(seed)
    answer = ort.ask(image, QUESTION, schedule=method, max_new_tokens=6)
    rows = tail(tiny, QUESTION)
    expected = reference(ort, tiny, image, method, [*rows, *answer.tokens], answer.kept)
    start = tiny.layout.image_start + tiny.layout.vision_tokens + len(rows) - 1
    assert close(answer.first_logits, expected[start])
    greedy = expected[start : start + len(answer.tokens)].argmax(axis=-1)
    assert list(answer.tokens) == greedy.tolist()


@pytest.mark.parametrize("method", SCHEDULES)
def test_gates_read_what_they_should(ort: Pipeline, tiny: Family, method: str) -> None:
    """Selectors run again on what transformers computes: the rows entering a layer, and the layer before."""
    questions = [QUESTION, LONGER, "w2"]
    answers = ort.ask([picture(i) for i in range(3)], questions, schedule=method, max_new_tokens=1)
    schedule = read_schedule(ort.bundle.path(f"schedules/{method}.json"))
    selector_class = plugins.load(methods, schedule.method, "method").Method
    start, compact = tiny.layout.image_start, schedule.positions == "compact"
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        rows, pixels = tail(tiny, question), pixel_values(picture(i), tiny.preprocess)
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
    """What the segment before `layer` hands to a selector."""
    query, key = seen.query[layer - 1][0], seen.key[layer - 1][0]
    return {
        "query": query[:, -1][None],
        "text_query": query[:, text].mean(dim=1)[None],
        "queries": query[:, stay].transpose(0, 1)[:, None],
        "key": key[:, stay].transpose(0, 1)[:, None],
        "layer_input": seen.before[layer - 1][:, stay],
    }


@pytest.mark.parametrize("method", [*SCHEDULES, "full"])
def test_backends_agree(ort: Pipeline, eager: Pipeline, method: str) -> None:
    ours = ort.ask(picture(3), LONGER, schedule=method, max_new_tokens=6)
    theirs = eager.ask(picture(3), LONGER, schedule=method, max_new_tokens=6)
    assert ours.kept == theirs.kept
    assert ours.tokens == theirs.tokens
    assert close(ours.first_logits, theirs.first_logits)


@pytest.mark.parametrize("method", [*SCHEDULES, "full"])
def test_follow_up_equals_one_long_conversation(ort: Pipeline, tiny: Family, method: str) -> None:
    image = picture(2)
    chat = ort.open(image, schedule=method, capacity=128)
    first = chat.ask(QUESTION, max_new_tokens=4)
    second = chat.ask(LONGER, max_new_tokens=4)
    import copy

    tokenizer = Tokenizer(tiny.prompt, copy.deepcopy(tiny.tokenizer.backend_tokenizer))
    spoken = [t for t in first.tokens if t not in tiny.prompt.stop]
    rows = [*tokenizer.first(QUESTION), *spoken, *tokenizer.next(LONGER)]
    expected = reference(ort, tiny, image, method, rows, first.kept)
    assert close(second.first_logits, expected[-1])


@pytest.mark.parametrize("method", [*SCHEDULES, "full"])
def test_a_batch_equals_single_runs(ort: Pipeline, method: str) -> None:
    images, questions = [picture(0), picture(1), picture(2)], [QUESTION, LONGER, "w2"]
    together = ort.ask(images, questions, schedule=method, max_new_tokens=5)
    for image, question, answer in zip(images, questions, together, strict=True):
        alone = ort.ask(image, question, schedule=method, max_new_tokens=5)
        assert answer.kept == alone.kept
        assert answer.tokens == alone.tokens
        assert close(answer.first_logits, alone.first_logits)


def test_two_exports_are_equal(tiny: Family, tiny_bundle: tuple[Path, Exported], tmp_path: Path) -> None:
    """The same graphs and schedules are the same bytes, whatever else is in a bundle."""
    folder, first = tiny_bundle
    names = {"alvts"} & set(METHODS) or {METHODS[0]}
    some = [read_schedule(folder / f"schedules/{name}.json") for name in sorted(names)]
    second = export(tiny, some, target("cpu"), tmp_path / "again", verify=False).manifest
    same = [graph for graph in second.graphs if graph in first.manifest.graphs]
    assert len(same) > len(second.schedules)
    files = [name for graph in same for name in (graph.file, f"{graph.file}.data")] + [
        s.file for s in second.schedules.values()
    ]
    compared = {name: digest for name, digest in second.files.items() if name in files}
    assert compared == {name: first.manifest.files[name] for name in compared}
