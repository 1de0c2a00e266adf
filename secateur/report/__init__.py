# SPDX-License-Identifier: Apache-2.0
"""What the pages of an evaluation and of a profile share: frame, style, charts of times, JSON."""
