# SPDX-License-Identifier: Apache-2.0
"""Controls: methods that weigh no token. What does not beat them is not worth its cost.

They are told by name, because results are read where the methods are not installed.
"""

from __future__ import annotations

DOWNSAMPLE = "downsample"
CONTROLS = ("random", "stride", DOWNSAMPLE)
