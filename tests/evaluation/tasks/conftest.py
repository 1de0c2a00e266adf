# SPDX-License-Identifier: Apache-2.0
"""Small folders of questions in common formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from secateur.evaluation.tasks.base import Source

Write = Callable[..., Source]


@pytest.fixture
def folder(tmp_path: Path) -> Write:
    """folder(records, **fields of Source): write the records as .jsonl, next to a picture for each image."""

    def write(records: list[dict[str, Any]], **options: Any) -> Source:
        data = tmp_path / "questions.jsonl"
        data.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        for i, name in enumerate(sorted({str(record["image"]) for record in records if "image" in record})):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((6, 6, 3), i, np.uint8)).save(tmp_path / name)
        return Source(data=data, **options)

    return write
