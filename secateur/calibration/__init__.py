# SPDX-License-Identifier: Apache-2.0
"""Measure a model on a small calibration set, and make schedules from the measurements."""
