# SPDX-License-Identifier: Apache-2.0
"""Chat templates that never end, or that fill the memory, are stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from secateur.checkpoints.bounded import MOST_BYTES, OutOfBounds, bounded

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bounds need Linux")


def rendered(template: str) -> Callable[[], str]:
    """Compile and render a template when it is called; Jinja computes constants when it compiles."""
    return lambda: str(ImmutableSandboxedEnvironment().from_string(template).render())


def test_results_and_errors_come_back() -> None:
    assert bounded(rendered("{{ 'é' * 3 }}")) == "ééé"
    assert len(bounded(lambda: "x" * (MOST_BYTES - 1))) == MOST_BYTES - 1
    with pytest.raises(OutOfBounds, match="division by zero"):
        bounded(rendered("{{ 1 / 0 }}"))
    with pytest.raises(OutOfBounds, match="^KeyError 'a'$"):
        bounded(lambda: dict[str, str]()["a"])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 1 seconds"),
        ("{{ 10 ** (10 ** 9) }}", "more than 1 seconds"),
        ("{{ ('a' * 10 ** 10) | length }}", "more than 1024 MiB of memory"),
        ("{{ 'a' * 2 * 10 ** 6 }}", "more than 1048576 bytes of text"),
        ("{% for i in range(10 ** 9) %}a{% endfor %}", "Range too big"),
    ],
    ids=["loops", "power", "memory", "output", "range"],
)
def test_what_has_no_end_is_stopped(template: str, message: str) -> None:
    with pytest.raises(OutOfBounds, match=message):
        bounded(rendered(template), seconds=1)
