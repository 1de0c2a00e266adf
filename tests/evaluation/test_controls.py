# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from secateur import methods, plugins
from secateur.evaluation.controls import CONTROLS, DOWNSAMPLE


def test_the_names_are_those_of_methods() -> None:
    assert DOWNSAMPLE in CONTROLS and set(CONTROLS) <= set(plugins.names(methods))
