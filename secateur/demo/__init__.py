# SPDX-License-Identifier: Apache-2.0
"""Demo: generated scenes with questions, a small trained LLaVA that answers them, and its training recipe."""

from pathlib import Path

__all__ = ["model_directory", "sample_directory"]


def model_directory() -> Path:
    """Return the folder of the trained demo model (`--model demo`), which transformers' `from_pretrained` loads."""
    return Path(__file__).parent / "model"


def sample_directory() -> Path:
    """Return the folder of a few test scenes as PNG, with their questions and answers in samples.json."""
    return Path(__file__).parent / "samples"
