# SPDX-License-Identifier: Apache-2.0
"""Statistics of a model over a small calibration set, and the budget a schedule costs."""
