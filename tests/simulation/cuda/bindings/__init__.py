# SPDX-License-Identifier: Apache-2.0
"""Only the runtime is simulated."""

__version__ = "12.6.2"
