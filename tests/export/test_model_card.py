# SPDX-License-Identifier: Apache-2.0
"""The model card of a bundle."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from secateur.bundle.manifest import Bucket, Manifest
from secateur.bundle.schedule import Gate, Schedule
from secateur.errors import BadBundle
from secateur.export.bundle import full
from secateur.export.model_card import CARD, Figures, card
from secateur.export.parity import Parity
from secateur.families.base import Family
from secateur.runtime import Bundle
from secateur.selection.budget import budget
from tests.runtime.conftest import write_bundle

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def pruned(family: Family, *gates: Gate, name: str = "half") -> Schedule:
    cost = budget(family.dimensions, family.layout.vision_tokens, gates)
    return Schedule(name, "stride", family.identity, gates, cost)


@pytest.fixture(scope="module")
def made(tiny: Family, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A hand-written bundle, and a manifest with the identity of the tiny model."""
    folder = tmp_path_factory.mktemp("card")
    write_bundle(folder)
    versions = {"secateur": "1.0", "torch": "2.13.0"}
    manifest = replace(Bundle.load(folder).manifest, model=tiny.identity, layout=tiny.layout, versions=versions)
    return folder, manifest


def row(text: str, name: str) -> list[str]:
    """Return the cells of a schedule's row."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def front_matter(text: str) -> dict[str, Any]:
    start, data, body = text.split("---\n", 2)
    assert start == "" and body.startswith("\n# ")
    found: dict[str, Any] = yaml.safe_load(data)
    return found


def test_the_row_of_a_schedule(tiny: Family, made: tuple[Path, Manifest]) -> None:
    """36 tokens in four layers, 18 from layer 1 on and 9 from layer 3 on; 2 heads of 12, two bytes, keys and values."""
    half = pruned(tiny, Gate(1, 18), Gate(3, 9))
    parity = (Parity("chain, half", 1.63e-6, 1e-4, True), Parity("gates/half.1", 0.5, 1e-4, True))
    text = card(made[1], [[full(tiny), half]], Figures(12_345_678, parity))
    kv = (36 + 18 + 18 + 9) * 2 * 2 * 2 * 12
    assert row(text, "half") == [
        "stride",
        "1: 36 → 18, 3: 18 → 9",
        "20.2 of 36",
        "43.8%",
        f"{half.budget.prefill_flops_ratio:.3f}",
        f"{kv / 1e3:.1f} kB",
        "2e-06",
    ]
    assert row(text, "full")[1:5] == ["none", "36.0 of 36", "0.0%", "1.000"]
    assert row(text, "full")[-1] == "other tokens kept"
    assert "| size | 12.3 MB in" in text and "Made with secateur 1.0, torch 2.13.0." in text
    assert text == card(made[1], [[full(tiny), half]], Figures(12_345_678, parity))


def test_gates_of_other_kinds(tiny: Family, made: tuple[Path, Manifest]) -> None:
    routes = tuple(Gate(layer, 12, kind="route") for layer in range(4))
    schedules = [pruned(tiny, *routes, name="r"), pruned(tiny, *routes[:2], name="two")]
    schedules.append(pruned(tiny, Gate(0, 20, kind="vision"), Gate(2, 5), name="v"))
    text = card(made[1], [schedules], Figures(1))
    assert row(text, "r")[1] == "0 to 3: 36 → 12 (routed)"
    assert row(text, "two")[1] == "0: 36 → 12 (routed), 1: 36 → 12 (routed)"
    assert row(text, "v")[1] == "0: 36 → 20 (in the encoder), 2: 20 → 5"
    assert row(text, "v")[-1] == "not checked"


def test_the_front_matter_is_valid_for_a_hub(tiny: Family, made: tuple[Path, Manifest]) -> None:
    schedules = [[full(tiny), pruned(tiny, Gate(1, 18))]]
    local = card(replace(made[1], source="/home/someone/models/llava"), schedules, Figures(1))
    tags = ["secateur", "onnx", "vision-language", "token-pruning", "llava", "stride"]
    expected = {"library_name": "secateur", "pipeline_tag": "image-text-to-text", "tags": tags}
    assert front_matter(local) == expected
    assert "someone" not in local and "the local checkpoint `llava`" in local
    hub = card(replace(made[1], source=f"org/name@{COMMIT}", target="tensorrt"), schedules, Figures(1))
    assert front_matter(hub) == expected | {"base_model": "org/name", "tags": [*tags, "tensorrt"]}
    assert f"[org/name](https://huggingface.co/org/name) at commit `{COMMIT}`" in hub
    assert "# name with vision-token pruning, for TensorRT" in hub and "secateur build bundle" in hub


@pytest.mark.parametrize("source", ["demo", "/", ".", "a b: c", "x\ny"])
def test_any_source_gives_a_valid_card(tiny: Family, made: tuple[Path, Manifest], source: str) -> None:
    assert front_matter(card(replace(made[1], source=source), [[full(tiny)]], Figures(1)))["library_name"] == "secateur"


def test_every_image_size_has_a_table(tiny: Family, made: tuple[Path, Manifest]) -> None:
    layout = replace(made[1].layout, image_size=(48, 24), vision="vision-24x48")
    manifest = replace(made[1], others=(Bucket(layout, made[1].schedules),))
    parity = (Parity("chain, full", 1e-6, 1e-4, True), Parity("chain, full, 24x48", 3e-6, 1e-4, True))
    text = card(manifest, [[full(tiny)], [full(tiny)]], Figures(1, parity))
    first, second = text.split("Images of ")[1:]
    assert first.startswith("24x24:") and row(first, "full")[-1] == "1e-06"
    assert second.startswith("24x48:") and row(second, "full")[-1] == "3e-06"


def test_an_owner_may_edit_it(tiny: Family, made: tuple[Path, Manifest], tmp_path: Path) -> None:
    folder = shutil.copytree(made[0], tmp_path / "bundle")
    manifest = Bundle.load(folder).manifest
    figures = Figures.of(folder, manifest, ())
    assert figures.size == sum((folder / name).stat().st_size for name in manifest.files) > 0
    assert CARD not in manifest.files
    for text in (card(manifest, [[full(tiny)]], figures), "mine"):
        (folder / CARD).write_text(text)
        assert Bundle.load(folder).manifest == manifest


def test_a_snapshot_in_the_hub_cache_is_refused(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    """huggingface_hub links a snapshot's files to blobs outside of it; a copy by --local-dir has them inside."""
    snapshot, blobs = tmp_path / "snapshots" / COMMIT, tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(p for p in made[0].rglob("*") if p.is_file())):
        place = snapshot / file.relative_to(made[0])
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blobs / str(number))
        place.symlink_to(os.path.relpath(blobs / str(number), place.parent))
    with pytest.raises(BadBundle, match="--local-dir"):
        Bundle.load(snapshot)
    copy = shutil.copytree(snapshot, tmp_path / "copy")  # follows the links, as --local-dir does
    (copy / ".cache" / "huggingface").mkdir(parents=True)
    (copy / ".gitattributes").touch()
    assert Bundle.load(copy).manifest == Bundle.load(made[0]).manifest
