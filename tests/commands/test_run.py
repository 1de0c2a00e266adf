# SPDX-License-Identifier: Apache-2.0
"""How `secateur run` shows the fitting of an image."""

from __future__ import annotations

import dataclasses
import json

import pytest

from secateur.commands.run import _fitted
from secateur.runtime.preprocess import Fitted


@pytest.mark.parametrize(
    ("fitted", "shown"),
    [
        (Fitted((48, 48), (0.5, 0.5), (0, 0, 0, 0)), "fitted by its processor, scaled by 0.5"),
        (Fitted((48, 48), (0.5, 0.25), (0, 0, 0, 0), "stretch"), "stretch, scaled by 0.25 x 0.5"),
        (
            Fitted((48, 48), (2, 2), (3, 4, 0, 0), "letterbox"),
            "letterbox, scaled by 2, padded by 3, 4 rows and 0, 0 columns",
        ),
    ],
)
def test_how_an_image_was_fitted(fitted: Fitted, shown: str) -> None:
    assert _fitted(json.loads(json.dumps(dataclasses.asdict(fitted)))) == shown
