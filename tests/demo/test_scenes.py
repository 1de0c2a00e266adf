# SPDX-License-Identifier: Apache-2.0
"""The generator: deterministic, splits by writer, every question with one answer."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from secateur.demo.digits import BLOCKS, digit_images
from secateur.demo.scenes import (
    CELL,
    COLOR_WORDS,
    DIGIT_WORDS,
    KINDS,
    LARGEST,
    POSITION_WORDS,
    SMALLEST,
    Scene,
    questions,
    samples,
    scene,
)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene(seed, "test") for seed in range(200)]


def test_same_seed_same_scene() -> None:
    first, second = scene(5, "test"), scene(5, "test")
    assert first.objects == second.objects
    assert first.image.tobytes() == second.image.tobytes()
    assert scene(6, "test").image.tobytes() != first.image.tobytes()
    assert scene(5, "train").image.tobytes() != first.image.tobytes()


def test_same_seed_same_samples() -> None:
    def drawn(seed: int) -> list[tuple[bytes, str, str]]:
        return [(each.image.tobytes(), each.question, each.answer) for each in samples("calibration", 12, seed)]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    # A shorter run equals the start of a longer one.
    assert [each.question for each in samples("test", 6)] == [each.question for each in samples("test", 12)][:6]


def test_splits_share_no_digit() -> None:
    assert BLOCKS["calibration"] == BLOCKS["train"]
    spans = sorted({BLOCKS[name] for name in ("train", "validation", "test")})
    assert all(first[1] <= second[0] for first, second in combinations(spans, 2))
    seen = {image.tobytes() for image in digit_images("train")[0]} | {
        image.tobytes() for image in digit_images("validation")[0]
    }
    assert not seen & {image.tobytes() for image in digit_images("test")[0]}
    for split in BLOCKS:
        assert set(digit_images(split)[1]) == set(range(10))


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match="Did you mean 'test'"):
        scene(0, "tset")


def test_counts_out_of_range() -> None:
    with pytest.raises(ValueError, match="1 .. 9"):
        scene(0, counts=(3, 10))


def test_objects(scenes: list[Scene]) -> None:
    for shown in scenes:
        assert shown.image.size == (96, 96)
        assert shown.image.mode == "RGB"
        assert 2 <= len(shown.objects) <= 5
        for attribute in ("digit", "color", "position"):
            assert len({getattr(each, attribute) for each in shown.objects}) == len(shown.objects)
        for each in shown.objects:
            assert SMALLEST <= each.side <= LARGEST
            assert 0 <= each.left <= 96 - each.side
            assert 0 <= each.top <= 96 - each.side
            column, row = (each.left + each.side // 2) // CELL, (each.top + each.side // 2) // CELL
            assert each.position == POSITION_WORDS[3 * row + column]
        assert not any(one.overlaps(other) for one, other in combinations(shown.objects, 2))


def test_everything_occurs(scenes: list[Scene]) -> None:
    objects = [each for shown in scenes for each in shown.objects]
    assert {each.digit for each in objects} == set(DIGIT_WORDS)
    assert {each.color for each in objects} == set(COLOR_WORDS)
    assert {each.position for each in objects} == set(POSITION_WORDS)
    assert {len(shown.objects) for shown in scenes} == {2, 3, 4, 5}
    assert len(COLOR_WORDS) >= 6


def test_each_question_has_one_answer(scenes: list[Scene]) -> None:
    for seed, shown in enumerate(scenes[:50]):
        asked = questions(shown, np.random.default_rng(seed))
        assert len({each.text for each in asked}) == len(asked)
        assert {each.kind for each in asked} == set(KINDS)
        truth = {each.digit: each for each in shown.objects}
        for each in asked:
            word = each.text.split()[-2]
            if each.kind == "presence":
                assert each.answer == ("yes" if word in truth else "no")
            if each.kind == "color":
                assert each.answer == truth[word].color
            if each.kind == "digit_at":
                assert truth[each.answer].position == word


def test_samples_are_balanced() -> None:
    drawn = list(samples("test", 240))
    assert Counter(each.kind for each in drawn) == dict.fromkeys(KINDS, 40)
    answers = Counter(each.answer for each in drawn if each.kind == "presence")
    assert answers == {"yes": 20, "no": 20}
    # Always giving the same answer scores no better than chance.
    for kind in ("color", "digit", "position", "digit_at"):
        most = Counter(each.answer for each in drawn if each.kind == kind).most_common(1)[0][1]
        assert most <= 14


def test_digits_file_is_scikit_learns() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is only needed to make digits.npz")
    bundled = datasets.load_digits()
    first, end = BLOCKS["test"]
    images, labels = digit_images("test")
    assert np.array_equal(images, bundled.images[first:end].astype(np.uint8))
    assert np.array_equal(labels, bundled.target[first:end])
