# SPDX-License-Identifier: Apache-2.0
"""Identical tokens: ONNX Runtime keeps the first ones, whatever the number of tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from secateur import methods, plugins
from secateur.bundle.schedule import Gate
from secateur.selection.balanced import Quotas
from secateur.selection.budget import BudgetRequest
from secateur.selection.selector import GateInputs, Selector
from tests.model_fixtures.gates import BATCH, START

SCORING = ("btp", "dart", "divprune", "fastv", "v2drop")
SIZES = (3, 5, 13)
KEEP = 2
BY_LOGITS = vars(Quotas("union", KEEP, KEEP, 0))


def alike(rows: GateInputs, tokens: int) -> GateInputs:
    """Return the inputs with every vision token equal to the first one."""

    def repeated(tensor: Tensor, axis: int, start: int) -> Tensor:
        first, made = tensor.narrow(axis, start, 1), tensor.clone()
        made.narrow(axis, start, tokens).copy_(first.expand_as(made.narrow(axis, start, tokens)))
        return made

    read = {}
    for name, tensor in rows.read.items():
        encoder = "." in name
        axis = 0 if name in ("key", "queries") else 1
        query = name in ("query", "text_query")
        read[name] = tensor if query else repeated(tensor, axis, 0 if encoder else START)
    return rows._replace(hidden_states=repeated(rows.hidden_states, 1, START), read=read)


def test_the_first_of_identical_tokens_stay(measured: Any, site: Any, random_rows: Any, exported_slots: Any) -> None:
    """BTP by logits alone with several numbers of tokens: the sums of a MatMul depend on the number of rows."""
    named = {name: plugins.load(methods, name, "method").Method() for name in SCORING}
    found, rows, names = list[Selector](), list[GateInputs](), list[str]()

    def add(name: str, method: Any, gate: Gate, tokens: int, tensors: Any = None) -> None:
        found.append(type(method).choose(site(gate, tokens, (1, tokens), tensors)))
        rows.append(alike(random_rows(tokens, seed=len(rows), whole=False), tokens))
        names.append(f"{name}, {tokens} tokens")

    for name, method in named.items():
        schedule = method.calibrate(measured(16, (1, 3), [0.5] * 16), BudgetRequest(keep=(KEEP,)))
        add(name, method, schedule.gates[0], 3, schedule.tensors)
    for tokens in SIZES:
        add("btp by logits", named["btp"], Gate(3, KEEP, selector=BY_LOGITS), tokens)
    slots = exported_slots(found, rows, [KEEP] * len(found), 23).outputs
    assert [name for name, kept in zip(names, slots, strict=True) if kept.tolist() != [[0, 1]] * BATCH] == []
