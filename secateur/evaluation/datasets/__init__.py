# SPDX-License-Identifier: Apache-2.0
"""Readers of question files, shared by the tasks."""
