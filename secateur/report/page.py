# SPDX-License-Identifier: Apache-2.0
"""HTML page in one file, without scripts or network. Equal input gives equal bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from secateur.errors import escaped

Filter = Callable[..., str]


def render(folder: Path, filters: Mapping[str, Filter], **values: Any) -> str:
    """Render `page.html` of a folder, which fills the blocks of base.html. Every string in `values` is escaped."""
    page = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters |= filters
    return escaped(page.get_template("page.html").render(**values))  # control characters too
