# SPDX-License-Identifier: Apache-2.0
"""Shadows the real `cuda`, which is a namespace package."""
