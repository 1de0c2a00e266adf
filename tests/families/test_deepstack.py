# SPDX-License-Identifier: Apache-2.0
"""DeepStack planes under pruning, against the model's own forward pass in transformers.

Hooks on its decoder layers mask the dropped tokens, or let tokens skip a layer; transformers encodes the image and adds
the planes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from secateur import families, plugins
from secateur.export.bundle import ExportPlan, export
from secateur.export.targets import target
from secateur.families.base import Family
from secateur.runtime import Pipeline
from secateur.selection.budget import BudgetRequest
from tests import checks
from tests.conftest import method, schedules, tiny_family
from tests.reference import kept_by_layer

HALF = BudgetRequest(keep=(0.5,))
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "alvts": ("alvts", {"selectors": "svd"}),
    "alvts-group": ("alvts", {"selectors": "svd", "dense_layers": 1, "group": 2}),
    "fastv": ("fastv", {}),
    "visionzip": ("visionzip", {"contextual": 0.0}),
}


@contextmanager
def hooked(
    layers: torch.nn.ModuleList, image: Tensor, kept: Mapping[int, Sequence[int]], route: bool
) -> Iterator[None]:
    """Within the block, from layer l on only the vision tokens kept[l] are seen; with `route` the others skip layers.

    image  rows of the vision tokens
    """
    seen = {number: kept[max(gates)] for number in range(len(layers)) if (gates := [g for g in kept if g <= number])}

    def alive(number: int, rows: int) -> Tensor:
        found = torch.ones(rows, dtype=torch.bool)
        found[image] = number not in seen
        found[image[list(seen.get(number, ()))]] = True
        return found

    def before(number: int, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rows = given[0].shape[1]
        visible = torch.ones(rows, rows).tril().bool() & alive(number, rows)
        visible |= torch.eye(rows, dtype=torch.bool)
        mask = torch.zeros(rows, rows).masked_fill(~visible, torch.finfo(torch.float32).min)
        return given, named | {"attention_mask": mask[None, None]}

    def after(number: int, given: tuple[Any, ...], result: Tensor) -> Tensor:
        return torch.where(alive(number, result.shape[1])[None, :, None], result, given[0])

    with ExitStack() as hooks:
        for number, layer in enumerate(layers):
            hooks.enter_context(
                layer.register_forward_pre_hook(lambda _, x, named, n=number: before(n, x, named), with_kwargs=True)
            )
            if route:
                hooks.enter_context(layer.register_forward_hook(lambda _, x, out, n=number: after(n, x, out)))
        yield


@pytest.fixture(scope="module", params=plugins.names(families))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Family, Pipeline]]:
    family, folder = tiny_family(request.param), tmp_path_factory.mktemp("planes") / request.param
    if not family.dimensions.planes:
        pytest.skip("has no DeepStack planes")
    chosen = {name: method(kind, **options) for name, (kind, options) in METHODS.items()}
    export([ExportPlan(family, tuple(schedules(family, chosen, HALF)))], target("cpu"), folder)
    with Pipeline.load(folder) as vlm:
        yield family, vlm


def test_pruned_logits(case: tuple[Family, Pipeline]) -> None:
    family, vlm = case
    for name in METHODS:
        gates, moved = vlm.bundle.manifest.schedules[name].gates, 0
        route = any(gate.kind == "route" for gate in gates)
        for seed in range(3):
            answer = vlm.ask(checks.picture(seed), checks.QUESTION, schedule=name, max_new_tokens=1)
            ids = [*family.layout.ids(family.image_token_id), *checks.tokenizer(family).first(checks.QUESTION)]
            given = family.inputs(torch.tensor([ids]), checks.pixels(family, (checks.picture(seed),)))
            image = torch.tensor(ids).eq(family.image_token_id).nonzero()[:, 0]
            kept = kept_by_layer(gates, answer.kept)
            with torch.inference_mode():
                full = family.model(**given).logits[0, -1].numpy()
                with hooked(family.decoder.layers, image, kept, route):
                    expected = family.model(**given).logits[0, -1].numpy()
            assert checks.close(answer.first_logits, expected), name
            assert not checks.close(answer.first_logits, full), name
            moved += answer.kept[0] != answer.kept[-1]
        assert moved or not route, "no token skipped a layer and was read by a later one"
