# SPDX-License-Identifier: Apache-2.0
"""Plug-ins of evaluation tasks: one file per task, named as in --task."""
