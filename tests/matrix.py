# SPDX-License-Identifier: Apache-2.0
"""Write the results of test_matrix.py to docs/matrix.md: python -m tests.matrix"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOUND = ROOT / "build" / "matrix"
PAGE = ROOT / "docs" / "matrix.md"
HEAD = """# Families and methods

`make matrix` writes this page. It runs every method on a random four-layer model of every family, and checks:

- **parity**: each graph and the whole chain on ONNX Runtime equal torch, and the segments equal transformers' forward
- **pruned**: the logits equal those of transformers' layers with the dropped tokens masked (1e-4, fp32)
- **decode**: the logits of each decode step equal those of a new masked run of the longer sequence (1e-4, fp32)
- **follow-up**: a follow-up question equals one long conversation
- **batch**: two samples with different images and lengths equal each sample alone
- **two images**: pruned, decode and batch with two images in the prompt, each with its own quota

A method that does not fit a family is refused with the reason.

"""


def page() -> str:
    """Return the page: counts, a table of families and methods, and the refusals."""
    families = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOUND.glob("*.json"))}
    counts = Counter(what for checks in families.values() for results in checks.values() for what in results.values())
    passed, refused = counts["passed"], sum(n for what, n in counts.items() if what.startswith("refused"))
    failed = sum(counts.values()) - passed - refused
    methods = sorted({method for checks in families.values() for method in checks})
    lines = [f"{passed} checks passed, {refused} were refused with the reason, {failed} failed.", ""]
    lines += ["| method | " + " | ".join(families) + " |", "|---" * (1 + len(families)) + "|"]
    lines += [
        f"| {m} | " + " | ".join(_cell(checks.get(m, {})) for checks in families.values()) + " |" for m in methods
    ]
    lines += ["", "Each cell has the passed and the made checks, and the number of refused checks. Refused:", ""]
    return HEAD + "\n".join([*lines, *_reasons(families)]) + "\n"


def _cell(results: dict[str, str]) -> str:
    made = [what for what in results.values() if not what.startswith("refused")]
    refused = len(results) - len(made)
    if not made:
        return "refused" if results else ""
    passed = sum(what == "passed" for what in made)
    return f"{passed}/{len(made)}" + (f", {refused} refused" if refused else "")


def _reasons(families: dict[str, dict[str, dict[str, str]]]) -> list[str]:
    """Return a line for each reason with its methods, and the check if only some checks were refused."""
    methods: dict[tuple[str, str], list[str]] = {}
    for family, checks in families.items():
        for method, results in checks.items():
            refused = {check: what for check, what in results.items() if what.startswith("refused")}
            for check, what in refused.items():
                where = f"`{family}`" if len(refused) == len(results) else f"`{family}`, {check}"
                named = methods.setdefault((where, what.partition(": ")[2]), [])
                named += [f"`{method}`"] * (f"`{method}`" not in named)
    return sorted(f"- {where}: {', '.join(named)}: {reason}" for (where, reason), named in methods.items())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
