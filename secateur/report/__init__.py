# SPDX-License-Identifier: Apache-2.0
"""Shared parts of the HTML pages of evaluations and profiles: frame, style, charts of times, JSON."""
