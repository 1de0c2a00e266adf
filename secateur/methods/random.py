# SPDX-License-Identifier: Apache-2.0
"""Random choice, the control of every experiment. Seeded; the same slots for every image, so a constant."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from secateur.bundle.schedule import Schedule
from secateur.errors import BadSchedule
from secateur.methods import base
from secateur.selection.budget import BudgetRequest, plan
from secateur.selection.selector import Fixed, GateSite, Selector
from secateur.selection.statistics import Statistics

SHARE = 0.25


@dataclass(frozen=True)
class Draw:
    """Constants of one gate."""

    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise BadSchedule(f"seed {self.seed} must be within 0 and 4294967295")


@dataclass(frozen=True)
class Method(base.Method):
    """Options of the random choice."""

    constants = Draw

    seed: int = field(default=0, metadata={"help": "seed of the choice"})

    def __post_init__(self) -> None:
        Draw(self.seed)

    def calibrate(self, statistics: Statistics, request: BudgetRequest) -> Schedule:
        """Place one gate before the decoder unless the request names layers."""
        depth, tokens = statistics.dimensions.layers, statistics.model.vision_tokens
        placed = plan(request, depth, tokens, (0,), (SHARE,), earliest=0)
        return self.schedule(statistics, placed.gates({"seed": self.seed}))

    def like(self, schedule: Schedule) -> Schedule:
        """Return the control of `schedule`: the same layers and counts, with random tokens."""
        gates, draw = [], {"seed": self.seed}
        for gate in schedule.gates:
            kind = "vision" if gate.kind == "downsample" else gate.kind
            parts = tuple(replace(part, selector=draw, tensors="") for part in gate.parts)
            gates.append(replace(gate, selector={} if parts else draw, kind=kind, parts=parts))
        name = f"{schedule.name}-random" + (f"-{self.seed}" if self.seed else "")
        return replace(schedule, name=name, method="random", gates=tuple(gates), calibration={}, weights="", tensors={})

    @classmethod
    def selector(cls, site: GateSite, constants: Draw) -> Selector:
        # RandomState, because its stream is the same in every version of numpy: a schedule keeps the same tokens.
        order = np.random.RandomState([constants.seed, site.gate.layer]).permutation(site.vision_tokens)
        return Fixed(int(slot) for slot in order[: site.gate.keep])
