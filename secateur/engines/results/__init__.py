# SPDX-License-Identifier: Apache-2.0
"""Readers for the output of trtexec 10.3 to 11.x: times, layer times, layers, console output."""
