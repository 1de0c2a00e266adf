# SPDX-License-Identifier: Apache-2.0
"""Run a command and record its memory over time:

    python -m tests.rss OUT.csv COMMAND ...

The file has a line each quarter of a second: seconds, and MiB of resident, anonymous and file-mapped memory.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

EVERY = 0.25
FIELDS = ("VmRSS", "RssAnon", "RssFile")


def sample(process: int) -> list[int]:
    """Return MiB of each of FIELDS; [] if the process has ended."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return []
    found = [re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE) for field in FIELDS]
    return [int(match[1]) // 1024 for match in found if match]


def main(out: Path, command: list[str]) -> int:
    """Run the command, and return its exit status."""
    start, peak = time.perf_counter(), [0] * len(FIELDS)
    child = subprocess.Popen(command)
    with out.open("w", encoding="utf-8") as file:
        file.write("seconds," + ",".join(FIELDS) + "\n")
        while child.poll() is None:
            if len(now := sample(child.pid)) == len(FIELDS):
                peak = [max(pair) for pair in zip(peak, now, strict=True)]
                file.write(f"{time.perf_counter() - start:.2f}," + ",".join(map(str, now)) + "\n")
            time.sleep(EVERY)
    shown = ", ".join(f"{field} {value} MiB" for field, value in zip(FIELDS, peak, strict=True))
    print(f"{time.perf_counter() - start:.1f} s, at most {shown}", file=sys.stderr)
    return child.returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
