# SPDX-License-Identifier: Apache-2.0
"""A bundle of two image sizes: each image uses the best size, with the answers of the model at that size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from secateur.bundle.graph_plan import runs
from secateur.errors import UnknownName
from secateur.families.base import Family
from secateur.profiling.clocked import ClockSettings, clock
from secateur.progress import silent
from secateur.runtime import Bundle, Pipeline
from tests import checks
from tests.checks import QUESTION, close
from tests.conftest import ONE_METHOD


@pytest.fixture(scope="module")
def families(sizes_bundle: tuple[Path, tuple[Family, Family]]) -> tuple[Family, Family]:
    return sizes_bundle[1]


@pytest.fixture(scope="module")
def vlm(sizes_bundle: tuple[Path, tuple[Family, Family]]) -> Iterator[Pipeline]:
    with Pipeline.load(sizes_bundle[0]) as opened:
        yield opened


def shaped(family: Family, seed: int) -> Image.Image:
    return checks.picture(seed, family.bucket)


def test_an_image_uses_the_best_size(vlm: Pipeline, families: tuple[Family, Family]) -> None:
    sizes = tuple(family.layout.size for family in families)
    assert vlm.image_sizes == sizes and sizes[0] != sizes[1]
    for family in families:
        answer = vlm.ask(shaped(family, 1), QUESTION, schedule="full", max_new_tokens=1)
        assert answer.receipt.image_size == family.layout.size
        assert [fitted.bucket for fitted in answer.receipt.images] == [family.bucket]
        forced = vlm.ask(shaped(family, 1), QUESTION, schedule="full", max_new_tokens=1, image_size=sizes[1])
        assert forced.receipt.image_size == sizes[1]
    with pytest.raises(UnknownName, match="unknown image size '1x1'"):
        vlm.ask(shaped(families[0], 1), QUESTION, image_size="1x1")


def test_full_equals_the_model_at_each_size(vlm: Pipeline, families: tuple[Family, Family]) -> None:
    for family in families:
        image = shaped(family, 2)
        rows = [*family.layout.ids(family.image_token_id), *checks.tokenizer(family).first(QUESTION)]
        answer = vlm.ask(image, QUESTION, schedule="full", max_new_tokens=1, image_size=family.layout.size)
        assert close(answer.first_logits, family.logits(rows, checks.pixels(family, (image,))))


def test_each_size_has_its_quotas(vlm: Pipeline, families: tuple[Family, Family]) -> None:
    for family, bucket in zip(families, vlm.bundle.manifest.buckets, strict=True):
        answer = vlm.ask(shaped(family, 3), QUESTION, schedule=ONE_METHOD, max_new_tokens=2)
        gates = bucket.schedules[ONE_METHOD].gates
        assert [len(kept) for kept in answer.kept] == [gate.keep for gate in gates]
        assert [gate.applied for gate in answer.receipt.gates] == [gate.keep for gate in gates]
        assert vlm.bundle.schedule(ONE_METHOD, family.layout.size).model == family.identity


@pytest.mark.parametrize("schedule", ["full", ONE_METHOD])
def test_a_batch_of_several_sizes_equals_single_runs(
    vlm: Pipeline, families: tuple[Family, Family], schedule: str
) -> None:
    images = [shaped(families[i % 2], 4 + i) for i in range(3)]
    questions = [QUESTION, "w2", "w4 w4 w8"]
    together = vlm.ask(images, questions, schedule=schedule, max_new_tokens=3)
    for image, question, answer in zip(images, questions, together, strict=True):
        alone = vlm.ask(image, question, schedule=schedule, max_new_tokens=3)
        assert (answer.tokens, answer.kept) == (alone.tokens, alone.kept)
        assert answer.receipt.image_size == alone.receipt.image_size and close(answer.first_logits, alone.first_logits)


def test_a_profile_has_every_schedule_at_every_size(vlm: Pipeline) -> None:
    chains, graphs = clock(vlm, None, QUESTION, ["full", ONE_METHOD], ClockSettings(1, 0, 2), silent)
    labels = list(runs(vlm.bundle.manifest, ["full", ONE_METHOD]))
    assert [chain.schedule for chain in chains] == labels and len(labels) == 4
    assert all(chain.speed_up == 1 for chain in chains if chain.schedule.startswith("full@"))
    for chain, run in zip(chains, runs(vlm.bundle.manifest, ["full", ONE_METHOD]).values(), strict=True):
        budget = vlm.bundle.schedule(run.schedule, run.manifest.layout.size).budget
        assert chain.average_tokens == budget.average_tokens
    assert chains[0].average_tokens != chains[2].average_tokens
    assert {name for graph in graphs for name in graph.shares} == set(labels)
    assert np.isfinite([graph.compute.p50 for graph in graphs]).all()


def test_a_missing_schedule_or_size_is_refused(vlm: Pipeline) -> None:
    bundle = Bundle.load(vlm.bundle.root, verify=False)
    with pytest.raises(UnknownName, match="unknown schedule 'btb'"):
        bundle.schedule("btb", vlm.image_sizes[1])
    with pytest.raises(UnknownName, match="unknown image size '1x1'"):
        bundle.schedule("full", "1x1")
