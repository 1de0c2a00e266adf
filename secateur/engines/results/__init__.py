# SPDX-License-Identifier: Apache-2.0
"""What trtexec 10.3 to 11.x writes, read as dataclasses: times, layer times, layers, console output."""
