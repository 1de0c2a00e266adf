# SPDX-License-Identifier: Apache-2.0
"""Stands in front of the real `cuda`, which is a namespace package."""
