# SPDX-License-Identifier: Apache-2.0
"""Scenes and questions for the demo model, generated from a split and a seed.

A scene is a 96x96 image with 2 to 5 small handwritten digits (14 to 20 pixels). Each has its own color and its center
in its own cell of a 3x3 grid, so that every question has exactly one answer:

    kind      question                           answer
    color     what color is the seven ?          red
    digit     what digit is red ?                seven
    count     how many digits are there ?        three
    position  where is the red digit ?           top-left
    digit_at  what digit is at top-left ?        seven
    presence  is there a seven ?                 yes / no, equally often
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from secateur.demo import _render, sample_directory
from secateur.demo._render import COLORS, SIZE
from secateur.demo.digits import digit_images
from secateur.errors import InputError

__all__ = ["COLOR_WORDS", "DIGIT_WORDS", "KINDS", "POSITION_WORDS", "Object", "Scene", "SceneQuestion", "SceneSample"]
__all__ += ["questions", "sample", "samples", "scene", "write_pictures"]

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOR_WORDS = tuple(COLORS)
POSITION_WORDS = ("top-left", "top", "top-right", "left", "center", "right", "bottom-left", "bottom", "bottom-right")
KINDS = ("color", "digit", "count", "position", "digit_at", "presence")

CELL = SIZE // 3
SMALLEST, LARGEST = 14, 20  # pixels, side of a digit's box
MARGIN = 3  # pixels between a digit's center and the border of its cell, so that positions are unambiguous
GAP = 2  # pixels between two boxes
PICTURE_SEEDS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Object:
    """One digit of a scene. Its box has side x side pixels, from (left, top)."""

    digit: str
    color: str
    position: str
    left: int
    top: int
    side: int
    source: int  # row of the digit's image in its split

    def overlaps(self, other: "Object", gap: int = 0) -> bool:
        """Return whether the two boxes are closer than `gap` pixels."""
        apart = (
            self.left + self.side + gap <= other.left
            or other.left + other.side + gap <= self.left
            or self.top + self.side + gap <= other.top
            or other.top + other.side + gap <= self.top
        )
        return not apart


@dataclass(frozen=True)
class Scene:
    """An RGB image, 96x96, and the digits in it."""

    image: Image.Image
    objects: tuple[Object, ...]


@dataclass(frozen=True)
class SceneQuestion:
    text: str
    answer: str
    kind: str


@dataclass(frozen=True)
class SceneSample:
    """One image with one question."""

    image: Image.Image
    question: str
    answer: str
    kind: str


def scene(
    seed: int,
    split: str = "train",
    counts: tuple[int, int] = (2, 5),
    repeats: bool = False,
    deformation: float = 1.0,
) -> Scene:
    """Return the scene of one seed in "train", "calibration" (same writers), "validation" or "test" (other writers).

    counts is the range of the number of digits. Training uses denser scenes in which digits and colors repeat, and
    stronger deformation; questions need the defaults.
    """
    if not 1 <= counts[0] <= counts[1] <= len(POSITION_WORDS):
        raise InputError(f"counts must be in 1 .. {len(POSITION_WORDS)}, lower bound first, got {counts}")
    rng = _generator("scene", split, seed)
    images, labels = digit_images(split)
    objects = _place(rng, int(rng.integers(counts[0], counts[1] + 1)), repeats, labels)

    canvas = _render.background(rng)
    for _ in range(int(rng.integers(2, 6))):
        mask, x, y = _render.blob(rng)
        color = COLOR_WORDS[rng.integers(len(COLOR_WORDS))]
        if all(_clear(x, y, each) for each in objects):
            _render.paint(canvas, mask, color, 0, 0, rng)
    for each in objects:
        mask = _render.glyph(images[each.source], each.side, rng, deformation)
        _render.paint(canvas, mask, each.color, each.left, each.top, rng)
    canvas += rng.normal(0, rng.uniform(3, 8), canvas.shape).astype(np.float32)
    return Scene(Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)), objects)


def questions(scene: Scene, rng: np.random.Generator) -> list[SceneQuestion]:
    """Return every question about the scene once, with as many presence questions with "no" as with "yes"."""
    asked = [SceneQuestion("how many digits are there ?", DIGIT_WORDS[len(scene.objects)], "count")]
    for each in scene.objects:
        asked += [
            SceneQuestion(f"what color is the {each.digit} ?", each.color, "color"),
            SceneQuestion(f"what digit is {each.color} ?", each.digit, "digit"),
            SceneQuestion(f"where is the {each.color} digit ?", each.position, "position"),
            SceneQuestion(f"what digit is at {each.position} ?", each.digit, "digit_at"),
            SceneQuestion(f"is there a {each.digit} ?", "yes", "presence"),
        ]
    absent = sorted(set(DIGIT_WORDS) - {each.digit for each in scene.objects})
    for word in rng.permutation(absent)[: len(scene.objects)]:
        asked.append(SceneQuestion(f"is there a {word} ?", "no", "presence"))
    return asked


def samples(split: str, count: int, seed: int = 0) -> Iterator[SceneSample]:
    """Yield `count` samples, each with its own scene. Kinds alternate, and so do the answers of presence questions."""
    for index in range(count):
        yield sample(split, index, seed)


def sample(split: str, index: int, seed: int = 0) -> SceneSample:
    """Return the sample of a seed at `index`."""
    rng = _generator("samples", split, seed, index)
    shown = scene(int(rng.integers(2**62)), split)
    kind = KINDS[index % len(KINDS)]
    fitting = [each for each in questions(shown, rng) if each.kind == kind]
    if kind == "presence":
        wanted = ("yes", "no")[index // len(KINDS) % 2]
        fitting = [each for each in fitting if each.answer == wanted]
    chosen = fitting[rng.integers(len(fitting))]
    return SceneSample(shown.image, chosen.text, chosen.answer, chosen.kind)


def write_pictures(folder: Path | None = None) -> None:
    """Write the sample pictures of the package: a 96x96 PNG per seed, and samples.json with a question of each kind.

    {"scene_1.png": [{"question": "what color is the four ?", "answer": "red", "kind": "color"}, ...], ...}
    """
    folder = folder or sample_directory()
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, list[dict[str, str]]] = {}
    for seed in PICTURE_SEEDS:
        shown = scene(seed, "test")
        name = f"scene_{seed}.png"
        shown.image.save(folder / name, optimize=True)
        asked = questions(shown, np.random.default_rng(seed))
        firsts = [next(each for each in asked if each.kind == kind) for kind in KINDS]
        index[name] = [{"question": each.text, "answer": each.answer, "kind": each.kind} for each in firsts]
    (folder / "samples.json").write_text(json.dumps(index, indent=2) + "\n")


def _generator(*key: str | int) -> np.random.Generator:
    """Return the random generator of a key; splits never share one. Uses crc32, as hash() of a string is salted."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    return np.random.default_rng(words)


def _place(rng: np.random.Generator, count: int, repeats: bool, labels: npt.NDArray[np.uint8]) -> tuple[Object, ...]:
    """Return `count` digits, one per cell, without overlap. Starts again in the rare case that a cell has no room."""
    while True:
        cells = rng.permutation(len(POSITION_WORDS))[:count]
        digits = rng.integers(10, size=count) if repeats else rng.permutation(10)[:count]
        colors = rng.integers(len(COLORS), size=count) if repeats else rng.permutation(len(COLORS))[:count]
        placed: list[Object] = []
        for cell, digit, color in zip(cells, digits, colors, strict=True):
            source = int(rng.choice(np.flatnonzero(labels == digit)))
            for _ in range(20):
                new = _object(rng, int(cell), DIGIT_WORDS[digit], COLOR_WORDS[color], source)
                if not any(new.overlaps(other, GAP) for other in placed):
                    placed.append(new)
                    break
        if len(placed) == count:
            return tuple(placed)


def _object(rng: np.random.Generator, cell: int, digit: str, color: str, source: int) -> Object:
    side = int(rng.integers(SMALLEST, LARGEST + 1))
    row, column = divmod(cell, 3)
    corner: list[int] = []
    for place in (column, row):
        center = rng.uniform(place * CELL + MARGIN, (place + 1) * CELL - MARGIN)
        corner.append(int(np.clip(round(center - side / 2), 0, SIZE - side)))
    return Object(digit, color, POSITION_WORDS[cell], corner[0], corner[1], side, source)


def _clear(x: float, y: float, each: Object) -> bool:
    """Return whether a blob around (x, y) leaves the digit's box free."""
    reach = each.side / 2 + 8
    return abs(x - each.left - each.side / 2) > reach or abs(y - each.top - each.side / 2) > reach
