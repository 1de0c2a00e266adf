# SPDX-License-Identifier: Apache-2.0
"""A warning of ours is one line on stderr, printed once; it does not change the exit code."""

from __future__ import annotations

import warnings

import pytest

from secateur.cli import one_line
from secateur.errors import SecateurWarning


def test_our_warnings_are_printed_once_and_others_as_usual(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        for _ in range(3):
            warnings.warn("the image is dark", SecateurWarning, stacklevel=1)

    assert one_line(command) == 0
    captured = capsys.readouterr()
    assert captured.err == "secateur: warning: the image is dark\n" and not captured.out
    with pytest.warns(SecateurWarning, match="dark"):  # the filters of the caller are as before
        command()
