# SPDX-License-Identifier: Apache-2.0
"""Draw the data flow and the imports between packages in docs/architecture.svg: python -m tests.architecture"""

from __future__ import annotations

import configparser
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "architecture.svg"
FLOW = (
    ("checkpoint, samples", "calibration"),
    ("schedule.json", "export"),
    ("bundle: ONNX, weights", "engines"),
    ("plans, engines.json", "runtime"),
    ("answer, receipt", ""),
)
"""Files, each with the package that reads it and writes the next file."""
CELL, LEFT, TOP, WIDTH = 28, 150, 310, 1000
STYLE = """text{font:13px sans-serif;fill:#1b1f24}.file{fill:#fff;stroke:#57606a}.package{fill:#dafbe1;stroke:#1a7f37}
.band{fill:#eef1f4}.allowed{fill:#cfe3f7}.used{fill:#0b5cad}.special{fill:#bc4c00}
.arrow{stroke:#57606a;stroke-width:1.5;fill:none}.title{font-size:16px;font-weight:bold}.note{font-size:12px}"""


def layers() -> list[list[str]]:
    """Return the packages of each layer of the import contract, from the top."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config["importlinter:contract:layers"]["layers"].split("\n")
    return [[name.strip() for name in line.split("|")] for line in lines if line.strip()]


def imports() -> set[tuple[str, str]]:
    """Return pairs of packages where the first imports the second, including lazy imports."""
    graph = grimp.build_graph("secateur", cache_dir=None)
    pairs = ((a, b) for a in graph.modules for b in graph.find_modules_directly_imported_by(a))
    return {(a.split(".")[1], b.split(".")[1]) for a, b in pairs if a.count(".") and b.count(".")}


def text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" {more}>{escape(words)}</text>'


def box(x: float, y: float, w: float, h: float, kind: str, more: str = "") -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" class="{kind}" {more}/>'


def flow() -> list[str]:
    """Draw the data flow: a box for each kind of file, and a package between two files."""
    parts = [text(20, 30, "Data flow", 'class="title"')]
    for number, (file, package) in enumerate(FLOW):
        x = 20 + 196 * number
        parts += [box(x, 50, 164, 40, "file", 'rx="4"'), text(x + 82, 75, file, 'text-anchor="middle"')]
        if package:
            parts += [f'<path d="M{x + 82} 90v40" class="arrow"/>']
            parts += [box(x + 30, 130, 104, 34, "package", 'rx="17"')]
            parts += [text(x + 82, 152, package, 'text-anchor="middle"')]
            parts += [f'<path d="M{x + 134} 147h72V92" class="arrow" marker-end="url(#tip)"/>']
    words = "The runtime reads a bundle directly when ONNX Runtime or torch runs it; only TensorRT needs engines."
    return [*parts, text(20, 192, words, 'class="note"')]


def matrix() -> list[str]:
    """Draw the imports: a row for each importing package, a column for each imported package."""
    rows = layers()
    order = [name for row in rows for name in row]
    level = {name: number for number, row in enumerate(rows) for name in row}
    used = imports()
    parts = [text(20, 228, "Imports between packages (the row imports the column)", 'class="title"')]
    for number, name in enumerate(order):
        x, y = LEFT + CELL * number, TOP + CELL * number
        if level[name] % 2:
            parts.append(box(0, y, LEFT + CELL * len(order), CELL, "band"))
        parts.append(text(LEFT - 8, y + 19, name, 'text-anchor="end"'))
        if number:  # nothing imports the first
            parts.append(text(0, 0, name, f'transform="translate({x + 18},{TOP - 6}) rotate(-50)"'))
    for i, row in enumerate(order):
        for j, column in enumerate(order):
            allowed, imported = level[row] < level[column], (row, column) in used
            if row != column and (imported or allowed):
                kind = "allowed" if not imported else "used" if allowed else "special"
                parts.append(box(LEFT + CELL * j + 1, TOP + CELL * i + 1, CELL - 2, CELL - 2, kind))
    x, y = LEFT + CELL * 1, TOP + CELL * (len(order) - 6)
    for number, (kind, words) in enumerate(
        (("allowed", "allowed, not used"), ("used", "used"), ("special", "exception: loaded on demand"))
    ):
        parts += [box(x, y + 26 * number, 18, 18, kind), text(x + 26, y + 14 + 26 * number, words)]
    return parts


def picture() -> str:
    """Return the SVG document."""
    height = TOP + CELL * sum(map(len, layers())) + 20
    tip = '<marker id="tip" markerWidth="8" markerHeight="8" refX="6" refY="4" orient="auto"><path d="M0 0 8 4 0 8z"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
    title = "<title>Data flow, and imports between packages</title>"
    body = [f"<style>{STYLE}</style>", f"<defs>{tip}</marker></defs>", box(0, 0, WIDTH, height, "", 'fill="#fff"')]
    return "\n".join([head, title, *body, *flow(), *matrix(), "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
