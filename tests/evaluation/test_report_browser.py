# SPDX-License-Identifier: Apache-2.0
"""The report in a real browser with scripts disabled."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from secateur.evaluation.report import report
from tests.evaluation.made import evaluation, overlays

NAMES = ("chromium", "google-chrome", "chromium-headless-shell")
FIRST_COLOUR = {"light": (0x00, 0x62, 0xB0), "dark": (0x5E, 0xB0, 0xFF)}  # of the first method in style.css
PAPER = {"light": (255, 255, 255), "dark": (0x14, 0x17, 0x1B)}


@pytest.fixture(scope="module")
def chromium() -> str:
    asked = os.environ.get("CHROMIUM")
    found = shutil.which(asked) if asked else next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium: set CHROMIUM, or install one of {', '.join(NAMES)}")
    return found


def screenshot(chromium: str, page: Path, width: int, *flags: str) -> NDArray[np.uint8]:
    """Return the pixels [H,W,3] of the page in a sandboxed frame, in which browsers run no script."""
    frame = page.with_suffix(".frame.html")
    frame.write_text(
        '<!doctype html><meta name="color-scheme" content="light dark"><body style="margin:0">'
        f'<iframe sandbox src="{page.name}" style="border:0;width:100%;height:4000px"></iframe>',
        encoding="utf-8",
    )
    made = page.with_suffix(".png")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1"]
    size = [f"--window-size={width},4000", f"--screenshot={made}", f"--user-data-dir={page.parent / 'profile'}"]
    done = subprocess.run([chromium, *options, *size, *flags, frame.as_uri()], capture_output=True, timeout=120)
    assert made.exists(), done.stderr[-2000:]
    return np.asarray(Image.open(made).convert("RGB"))


def share(pixels: NDArray[np.uint8], colour: tuple[int, int, int]) -> float:
    return float((pixels == np.array(colour, np.uint8)).all(axis=-1).mean())


@pytest.mark.slow
def test_the_frame_runs_no_script(chromium: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<!doctype html><script>document.documentElement.style.background = "red"</script>')
    assert share(screenshot(chromium, page, 400), (255, 0, 0)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_shows_without_scripts(chromium: str, tmp_path: Path, width: int, scheme: str) -> None:
    page = tmp_path / "report.html"
    found = evaluation()
    page.write_text(report(found, overlays(found)), encoding="utf-8")
    flags = ("--blink-settings=preferredColorScheme=0",) if scheme == "dark" else ()
    pixels = screenshot(chromium, page, width, *flags)
    assert pixels.shape == (4000, width, 3)
    assert 0.5 < share(pixels, PAPER[scheme]) < 0.97
    assert (pixels == np.array(FIRST_COLOUR[scheme], np.uint8)).all(axis=-1).sum() > 200
