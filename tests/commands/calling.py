# SPDX-License-Identifier: Apache-2.0
"""Run of one command in this process."""

from __future__ import annotations

import pytest

from secateur.cli import main


def call(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of one command."""
    try:
        code = main([str(word) for word in argv])
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Return the one-line error of a wrong use."""
    code, out, err = call(capsys, *argv)
    assert code == 2 and out == "", (code, out, err)
    assert "Traceback" not in err
    (line,) = err.strip().splitlines()
    assert line.startswith("secateur: error: ")
    return line
