# SPDX-License-Identifier: Apache-2.0
"""Notes that explain the results, shared by the printed tables and the HTML report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

FLOPS = (
    "Prefill operations of the vision tokens in the decoder, as a share of those without pruning. The gates "
    "themselves are not included, nor is the encoder, where a smaller image saves much."
)
FLOPS_WITH_GATES = (
    "In brackets, where the schedule reports it: decoder and gates together, text included, as a share of the dense "
    "layers that the gates serve."
)


def bundle(segments: int, encoder_scores: Sequence[str]) -> str:
    """Return a note on the cost that the schedules of a bundle add to each other; "" if there is none.

    segments        decoder segments of the bundle
    encoder_scores  outputs of its encoder besides the features
    """
    causes = []
    if segments > 1:
        causes.append(f"cuts the decoder into {segments} segments because some schedule needs it")
    if encoder_scores:
        causes.append(f"makes the encoder return {', '.join(encoder_scores)} for the gates that read it")
    if not causes:
        return ""
    fewer = "fewer borders and outputs" if encoder_scores else "fewer borders"
    return (
        f"This bundle {' and '.join(causes)}: every schedule pays for that, including full. A method that is exported "
        f"alone has {fewer} and is faster. Compare schedules here with each other, not with other bundles."
    )


def sizes(image_sizes: Sequence[str]) -> str:
    """Return a note on the image size of the token counts; "" if there is only one size."""
    if len(image_sizes) < 2:
        return ""
    first, *others = image_sizes
    return (
        f"Tokens and FLOPs are those of images of {first}; those of {' and '.join(others)} differ. "
        "Scores, times and caches are for the sizes that the questions used."
    )


def references(used: Iterable[str], tokens: Mapping[str, float]) -> str:
    """Return the reference schedules of the splits with their average tokens: "downsample-21 (30.0 tokens)"."""
    return ", ".join(f"{name} ({tokens[name]:,.1f} tokens)" for name in dict.fromkeys(used))
