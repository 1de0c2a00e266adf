# SPDX-License-Identifier: Apache-2.0
"""Command-line options, tables and progress bars, shared by the commands."""
