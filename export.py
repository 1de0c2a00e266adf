# SPDX-License-Identifier: Apache-2.0
"""python export.py --method btp [...]: the same as `secateur export --method btp [...]`."""

import sys

from secateur.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
