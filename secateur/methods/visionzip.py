# SPDX-License-Identifier: Apache-2.0
"""VisionZip in fixed sizes, arXiv 2412.04467, CVPR 2025.

Prunes once, after the vision encoder. Most of the budget goes to the patches that the class token attends to most
("dominant"). The rest goes to patches at a uniform stride among the others ("contextual"), and to each of these the
mean of the dropped patches whose keys are most like its own is added. The class token itself is not passed on: it has
no position in the image.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.bundle.schedule import Gate, Schedule
from secateur.errors import BadSchedule
from secateur.methods import base
from secateur.selection.budget import BudgetRequest, front
from secateur.selection.constants import EncoderScore
from secateur.selection.selector import GateInputs, GateSite, Selector
from secateur.selection.statistics import Statistics
from secateur.selection.topk import ascending, gather, top

SHARE = 64 / 576  # the published 54 dominant and 10 contextual tokens of LLaVA-1.5


@dataclass(frozen=True)
class Zip(EncoderScore):
    """Constants of one gate: the score, and the number of kept tokens that dropped tokens are merged into."""

    contextual: int = 0


@dataclass(frozen=True)
class Method(base.Method):
    """Options of VisionZip."""

    constants = Zip

    contextual: float = field(
        default=10 / 64, metadata={"help": "share of the kept tokens that dropped tokens are merged into"}
    )
    score_layer: int = field(
        default=-2, metadata={"help": "encoder layer whose attention and keys are used, from the end: -1 is the last"}
    )

    def __post_init__(self) -> None:
        if not 0 <= self.contextual <= 1:
            raise BadSchedule(f"contextual {self.contextual:g} must be a share from 0 to 1 of the kept tokens")
        Zip(score_layer=self.score_layer)

    def calibrate(self, statistics: Statistics, request: BudgetRequest) -> Schedule:
        """Place one gate, scored by the class token if there is one. Nothing is measured."""
        model, dimensions = statistics.model, statistics.dimensions
        keep = front(request, dimensions.layers, model.vision_tokens, SHARE)
        score = "class_token" if dimensions.class_token else "received"
        constants = Zip(score, self.score_layer, round(self.contextual * keep))
        return self.schedule(statistics, (Gate(0, keep, "vision", asdict(constants)),))

    @classmethod
    def selector(cls, site: GateSite, constants: Zip) -> Selector:
        keep, contextual, read = site.gate.keep, constants.contextual, constants.name(site)
        if not 0 <= contextual <= keep:
            raise BadSchedule(f"contextual {contextual} of a visionzip gate must be a count within 0 and {keep}")
        return ZipSelector(site.vision_tokens, keep - contextual, contextual, read)


class ZipSelector(Selector):
    """Keeps dominant tokens unchanged, and C targets that dropped tokens are merged into; all counts are constants.

    Target i is number i * (R // C) of the R = N - dominant other tokens, in raster order.
    """

    targets: Tensor
    others: Tensor

    def __init__(self, tokens: int, dominant: int, contextual: int, read: str) -> None:
        super().__init__()
        self.dominant, self.contextual = dominant, contextual
        rest = tokens - dominant
        chosen = [i * (rest // contextual) for i in range(contextual)]
        self.register_buffer("targets", torch.tensor(chosen, dtype=torch.int64))
        self.register_buffer("others", torch.tensor(sorted(set(range(rest)) - set(chosen)), dtype=torch.int64))
        self.reads = (read, f"patch_key{read[read.rindex('.') :]}") if contextual else (read,)

    def forward(self, rows: GateInputs) -> Tensor:
        return self.kept(rows)[0]

    def kept(self, rows: GateInputs) -> tuple[Tensor, Tensor]:
        """Return slots and rows; the mean of the dropped rows assigned to a target is added to it, in fp32."""
        dominant, targets, others = self._split(rows)
        slots = ascending(torch.cat([dominant, targets], dim=1))
        kept = gather(rows.vision, slots)
        if not self.contextual:
            return slots, kept
        keys = F.normalize(rows.read[self.reads[1]].float(), dim=-1)
        alike = torch.matmul(gather(keys, others), gather(keys, targets).transpose(1, 2))
        nearest = alike.argmax(dim=2, keepdim=True)
        belongs = (nearest == torch.arange(self.contextual, device=nearest.device)).float()
        total = torch.matmul(belongs.transpose(1, 2), gather(rows.vision, others).float())
        mean = total / belongs.sum(dim=1).clamp(min=1)[:, :, None]
        at = (slots[:, :, None] == targets[:, None, :]).float()
        return slots, (kept.float() + torch.matmul(at, mean)).to(kept.dtype)

    def _split(self, rows: GateInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Return the slots of the dominant tokens [B, D], of the targets [B, C] and of the others, both ascending."""
        score = rows.read[self.reads[0]].float()
        order = top(score, score.shape[1])
        rest = ascending(order[:, self.dominant :])
        return order[:, : self.dominant], rest.index_select(1, self.targets), rest.index_select(1, self.others)
