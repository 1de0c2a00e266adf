# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from secateur.evaluation import results as notes


def test_costs_that_schedules_add_to_each_other() -> None:
    assert notes.bundle_note(1, ()) == ""
    cut = notes.bundle_note(16, ())
    assert cut.startswith(
        "This bundle cuts the decoder into 16 segments because some schedule needs it: every schedule"
    )
    assert "fewer borders and is faster" in cut and "not with other bundles" in cut
    both = notes.bundle_note(2, ("received.-2", "class_token.-2"))
    assert "2 segments" in both and "makes the encoder return received.-2, class_token.-2 for" in both
    assert "segments" not in notes.bundle_note(1, ("received.-2",))


def test_image_size_of_the_token_counts() -> None:
    assert notes.sizes_note(()) == notes.sizes_note(("448x448",)) == ""
    said = notes.sizes_note(("448x448", "672x448", "448x672"))
    assert "of images of 448x448;" in said and "those of 672x448 and 448x672 differ" in said


def test_each_reference_is_listed_once_with_its_tokens() -> None:
    used = notes.references(["d33", "d11", "d33"], {"d33": 48.0, "d11": 16.0, "other": 1.0})
    assert used == "d33 (48.0 tokens), d11 (16.0 tokens)"
    assert notes.references([], {}) == ""
