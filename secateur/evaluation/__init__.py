# SPDX-License-Identifier: Apache-2.0
"""Evaluation of bundles: accuracy of every schedule, comparison with full and with other precisions, and times."""
