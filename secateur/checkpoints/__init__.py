# SPDX-License-Identifier: Apache-2.0
"""Find, check and read the checkpoints of transformers."""
