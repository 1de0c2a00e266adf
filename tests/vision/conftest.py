# SPDX-License-Identifier: Apache-2.0
"""Models of two kinds of vision encoder, made once."""

from __future__ import annotations

import pytest

from secateur.families import llava
from secateur.families.base import Family
from tests.model_fixtures.towers import siglip_family


@pytest.fixture(scope="session")
def siglip() -> llava.Family:
    return siglip_family()


@pytest.fixture(scope="session")
def clip() -> llava.Family:
    return llava.Family.tiny()


@pytest.fixture(params=["demo", "siglip"])
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.getfixturevalue(request.param)
    return found
