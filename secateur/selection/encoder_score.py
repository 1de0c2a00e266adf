# SPDX-License-Identifier: Apache-2.0
"""Score of a gate after the vision encoder, from the encoder's attention; shared by several methods."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.errors import BadSchedule
from secateur.selection.constants import one_of
from secateur.selection.selector import GateSite


@dataclass(frozen=True)
class EncoderScore:
    """Constants of one gate.

    score        attention that a patch gets from the "class_token", or "received" from all patches
    score_layer  encoder layer, from the end: -1 is the last
    """

    score: str = "class_token"
    score_layer: int = -2

    def __post_init__(self) -> None:
        one_of("score", self.score, ("class_token", "received"))
        check_layer(self.score_layer)

    def name(self, site: GateSite) -> str:
        """Return the name of the tensor that the gate reads, such as "class_token.-2".

        Raises:
            BadSchedule: the encoder has no class token to score by.
        """
        if self.score == "class_token" and not site.dimensions.class_token:
            raise BadSchedule(
                f"a {site.method} gate scores by the class token, which this encoder does not have; calibrate again"
            )
        return f"{self.score}.{self.score_layer}"


def check_layer(layer: int) -> None:
    """Check that an encoder layer is counted from the end.

    Raises:
        BadSchedule: it is 0 or more.
    """
    if layer >= 0:
        raise BadSchedule(f"score_layer {layer} must be below 0: layers count from the end, -1 is the last")
