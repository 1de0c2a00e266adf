# SPDX-License-Identifier: Apache-2.0
"""The few pictures that the package carries as files, for the README and for a first `secateur run`."""

import json
from pathlib import Path

import numpy as np

from secateur.demo import sample_directory
from secateur.demo.scenes import KINDS, questions, scene

__all__ = ["write_pictures"]

SEEDS = (1, 2, 3, 4)


def write_pictures(folder: Path | None = None) -> None:
    """One PNG per seed, 96x96, of the test split, and samples.json: one question of each kind per picture.

    {"scene_1.png": [{"question": "what color is the four ?", "answer": "red", "kind": "color"}, ...], ...}
    """
    folder = folder or sample_directory()
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, list[dict[str, str]]] = {}
    for seed in SEEDS:
        shown = scene(seed, "test")
        name = f"scene_{seed}.png"
        shown.image.save(folder / name, optimize=True)
        asked = questions(shown, np.random.default_rng(seed))
        firsts = [next(each for each in asked if each.kind == kind) for kind in KINDS]
        index[name] = [{"question": each.text, "answer": each.answer, "kind": each.kind} for each in firsts]
    (folder / "samples.json").write_text(json.dumps(index, indent=2) + "\n")
