# SPDX-License-Identifier: Apache-2.0
"""Decoder layers, shared by the model families."""
