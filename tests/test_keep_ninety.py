# SPDX-License-Identifier: Apache-2.0
"""A method that keeps 90 % of the tokens scores nearly as well as the full model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import METHODS, ROOT

POINTS = 0.03
# VTW drops all tokens or none, so it cannot keep 90 %.
LEFT_OUT = {"vtw"}
# V2Drop drops the tokens that a layer changes least. In the first seven layers of the demo these are the digits; in
# later layers it is the reverse.
LAYERS = {"v2drop": "9"}


def run(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", "secateur", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["", *sorted(set(LAYERS.values()))])
def test_ninety_per_cent(layers: str, tmp_path: Path) -> None:
    names = [name for name in METHODS if LAYERS.get(name, "") == layers and name not in LEFT_OUT]
    where = ["--layers", layers] if layers else []
    run("export", "--method", ",".join(names), "--keep", "0.9", *where, "--out", str(tmp_path / "bundle"), "--no-check")
    run("eval", str(tmp_path / "bundle"), "--questions", "300", "--timed", "1", "--out", str(tmp_path / "found.json"))
    found = {s["method"]: s for s in json.loads((tmp_path / "found.json").read_text())["schedules"]}
    assert found.keys() == {"full", *names}
    for name in names:
        assert 0.02 < found[name]["compression"] < 0.11
        assert found[name]["score"] > found["full"]["score"] - POINTS, name
