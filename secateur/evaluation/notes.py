# SPDX-License-Identifier: Apache-2.0
"""What a reader must know of the figures, in the same words beside the printed tables and on the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

FLOPS = (
    "Prefill operations of the vision tokens in the decoder, as a share of those without pruning. Not counted are the "
    "gates' own cost and the encoder, in which a smaller image saves much."
)
FLOPS_WITH_GATES = (
    "In brackets, where the schedule reports it: decoder and gates together, text included, as a share of the dense "
    "layers that the gates serve."
)


def bundle(segments: int, encoder_scores: Sequence[str]) -> str:
    """How much the schedules of a bundle pay for each other; "" where they do not.

    segments        decoder segments of the bundle
    encoder_scores  what its encoder returns beside the features
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
        f"This bundle {' and '.join(causes)}: every schedule pays for that, full too. Exported alone a method has "
        f"{fewer} and is faster. Compare schedules here with each other, not with other bundles."
    )


def sizes(image_sizes: Sequence[str]) -> str:
    """Which image size the counts of tokens are of; "" where there is one."""
    if len(image_sizes) < 2:
        return ""
    first, *others = image_sizes
    return (
        f"Tokens and FLOPs are those of images of {first}; those of {' and '.join(others)} have others. "
        "Scores, times and caches are of the sizes that the questions took."
    )


def references(used: Iterable[str], tokens: Mapping[str, float]) -> str:
    """The downsampled images that splits refer to, each with its average tokens: "downsample-21 (30.0 tokens)"."""
    return ", ".join(f"{name} ({tokens[name]:,.1f} tokens)" for name in dict.fromkeys(used))
