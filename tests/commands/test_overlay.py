# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from secateur.demo.scenes import samples
from tests.commands.calling import call, refused


@pytest.mark.parametrize("name", ["kept", "kept.xyz"])
def test_an_output_that_is_not_an_image_file_is_refused_first(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "overlay", tmp_path / "no-bundle", "--image", "a.png", "--prompt", "?", "--out", name)
    assert said == f"secateur: error: --out {name} is not an image file; give a name such as kept.png"


def test_an_output_that_cannot_be_written_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "kept.png"
    said = refused(capsys, "overlay", tmp_path / "no-bundle", "--image", "a.png", "--prompt", "?", "--out", out)
    assert "file is not a writable folder" in said


def test_the_picture_is_written(
    demo_bundle: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sample,) = samples("test", 1, 1)
    image, out = tmp_path / "scene.png", tmp_path / "kept.png"
    sample.image.save(image)
    words = ("overlay", demo_bundle[0], "--image", image, "--prompt", sample.question, "--out", out)
    code, text, _ = call(capsys, *words, "--json")
    result = json.loads(text)
    assert code == 0 and result["prompt"] == sample.question and result["out"] == str(out)
    with Image.open(out) as drawn:
        assert drawn.width > drawn.height
    assert f"output {out} exists; add --force" in refused(capsys, *words)
    assert call(capsys, *words, "--force")[1] == f"{sample.question} {result['text']}; wrote {out}\n"
