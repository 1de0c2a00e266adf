# SPDX-License-Identifier: Apache-2.0
"""Draw the memory recorded by tests.rss: python -m tests.rss_chart OUT.csv PICTURE.svg"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from markupsafe import Markup

from secateur.report.charts import Scale, ticks
from tests.rss import FIELDS

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 260, 56, 130, 16, 40
LINES = {"VmRSS": ("resident", "#1f6feb"), "RssAnon": ("anonymous", "#d1580b")}
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#57606a}.end{text-anchor:end}.mid{text-anchor:middle}"
    ".grid{stroke:#d0d7de;fill:none}.line{fill:none;stroke-width:1.5}"
)


def chart(rows: list[dict[str, float]]) -> Markup:
    """Return a chart of memory in GiB over seconds."""
    x = Scale(0, rows[-1]["seconds"], LEFT, WIDTH - RIGHT)
    y = Scale(0, max(row["VmRSS"] for row in rows) / 1024 * 1.05, HEIGHT - BOTTOM, TOP)
    parts = []
    for value in ticks(0, y.end, 4):
        row = '<path class="grid" d="M{} {:.1f}H{}"/><text class="end" x="{}" y="{:.1f}">{:g} GiB</text>'
        parts.append(Markup(row).format(LEFT, y(value), WIDTH - RIGHT, LEFT - 6, y(value) + 4, value))
    for value in ticks(0, x.end, 8):
        label = '<text class="mid" x="{:.1f}" y="{}">{:g} s</text>'
        parts.append(Markup(label).format(x(value), HEIGHT - BOTTOM + 18, value))
    for number, (field, (name, colour)) in enumerate(LINES.items()):
        points = " ".join(f"{x(row['seconds']):.1f},{y(row[field] / 1024):.1f}" for row in rows)
        parts.append(Markup('<polyline class="line" stroke="{}" points="{}"/>').format(colour, points))
        peak = max(row[field] for row in rows)
        legend = '<text x="{}" y="{}" style="fill:{}">{}, at most {:.2f}</text>'
        place = WIDTH - RIGHT + 8, TOP + 12 + 18 * number
        parts.append(Markup(legend).format(*place, colour, name, peak / 1024))
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}"><style>{}</style>'
    back = Markup('<rect width="100%" height="100%" fill="#fff"/>')
    return Markup(head).format(WIDTH, HEIGHT, STYLE) + back + Markup("").join(parts) + Markup("</svg>\n")


def main(source: Path, out: Path) -> None:
    with source.open(encoding="utf-8") as file:
        rows = [{name: float(row[name]) for name in ("seconds", *FIELDS)} for row in csv.DictReader(file)]
    out.write_text(str(chart(rows)), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
