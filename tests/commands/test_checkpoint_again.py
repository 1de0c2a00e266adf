# SPDX-License-Identifier: Apache-2.0
"""Commands that need the checkpoint of a bundle find it again, by --model if it was moved; never on the hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from secateur.errors import InputError
from secateur.export.bundle import ExportPlan, export
from secateur.export.targets import target
from secateur.families.base import Family
from secateur.load_model import load
from secateur.runtime import Pipeline
from tests.commands.calling import call, refused


@pytest.fixture(scope="module")
def moved(tiny: Family, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A bundle of work/llava, exported from the folder above it; the checkpoint was moved since. And another one."""
    folder = tmp_path_factory.mktemp("moved")
    other = type(tiny).tiny(seed=1)
    for family, name in ((tiny, "work/llava"), (other, "other")):
        family.model.save_pretrained(folder / name)
        family.processor.save_pretrained(folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        export([ExportPlan(load("work/llava"), ())], target("cpu"), folder / "bundle")
    (folder / "work" / "llava").rename(folder / "elsewhere")
    return folder / "bundle", folder / "elsewhere", folder / "other"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (24, 24), "red").save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.checkpoints import hub

    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))


def test_the_folder_is_named_and_the_hub_is_not_asked(
    moved: tuple[Path, Path, Path], image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("run", moved[0], "--image", image, "--prompt", "w1", "--backend", "torch")
    for argv in (run, ("check", moved[0], "--against", "torch"), ("inspect", moved[0], "--check")):
        said = refused(capsys, *argv)
        assert "was exported from the folder 'work/llava', which is not here; give its checkpoint with --model" in said


def test_the_moved_checkpoint_is_used(
    moved: tuple[Path, Path, Path], image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, model, other = moved
    asked = ("--image", image, "--prompt", "w1 w5", "--max-new-tokens", 4, "--json")
    code, torch, _ = call(capsys, "run", bundle, *asked, "--backend", "torch", "--model", model)
    _, ort, _ = call(capsys, "run", bundle, *asked)
    assert code == 0 and torch.split('"tokens"')[1].split("]")[0] == ort.split('"tokens"')[1].split("]")[0]
    assert call(capsys, "inspect", bundle, "--check", "--questions", 2, "--model", model)[0] == 0
    for argv in (("run", bundle, *asked, "--backend", "torch"), ("inspect", bundle, "--check")):
        said = refused(capsys, *argv, "--model", other)
        assert "is not the one this bundle was exported from: its weights or its configuration differ" in said


def test_a_model_that_nothing_reads(moved: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert "changes nothing without --check" in refused(capsys, "inspect", moved[0], "--model", moved[1])
    assert "only the backend torch reads" in refused(
        capsys, "check", moved[0], "--against", "ort", "--device", "cuda", "--model", moved[1]
    )
    with pytest.raises(InputError, match="only the backend torch reads a checkpoint"):
        Pipeline.load(moved[0], model=moved[1])
    assert "nothing to inspect" in refused(capsys, "inspect")
