# SPDX-License-Identifier: Apache-2.0
"""Vision encoder with attention scores of its patches.

The scores are a side branch: queries and keys of a layer go through a separate softmax, and the layer's attention stays
one fused operator. transformers calls a registered attention function, but SigLIP does not pass further arguments to
it, so queries and keys are recorded in a context variable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from secateur.decoder.attention import attention as fused
from secateur.decoder.attention import calling
from secateur.errors import BadModel

NAME = "secateur-vision"
SCORES = ("received", "given", "class_token", "patch_key")


def parsed(name: str, depth: int, class_token: bool) -> tuple[str, int]:
    """Return the kind and the layer of the score `name`; the layer is counted from the end (-1 is the last).

    Raises:
        BadModel: an encoder of `depth` layers, with or without a class token, does not have it.
    """
    kind, _, layer = name.rpartition(".")
    if kind not in SCORES or not layer.removeprefix("-").isdigit():
        raise BadModel(f"a vision encoder has no score '{name}'; use {', '.join(SCORES)} with a layer, as in .-2")
    if not -depth <= int(layer) <= -1:
        raise BadModel(f"score '{name}' is outside the encoder of {depth} layers; use -{depth} to -1")
    if kind == "class_token" and not class_token:
        raise BadModel(f"score '{name}' needs a class token, which this vision encoder lacks; use received{name[11:]}")
    return kind, int(layer)


def check_features(layers: Sequence[int], depth: int) -> None:
    """Check indices into the hidden_states of an encoder of `depth` layers.

    Raises:
        BadModel: there is no such layer.
    """
    if beyond := [layer for layer in layers if not -depth - 1 <= layer <= depth]:
        raise BadModel(
            f"vision_feature_layer {beyond[0]} is outside the encoder of {depth} layers; correct it in config.json"
        )


class Heads(NamedTuple):
    """Queries and keys [B, H, c + N, dh] of one layer, and the factor of their products."""

    query: Tensor
    key: Tensor
    scaling: float


_record: ContextVar[list[Heads] | None] = ContextVar("secateur_vision_record", default=None)


def attention(module: nn.Module, query: Tensor, key: Tensor, *further: Any, **named: Any) -> tuple[Tensor, None]:
    """Record queries and keys, and return fused attention [B, n, H, dh]."""
    record = _record.get()
    if record is not None:
        record.append(Heads(query, key, named["scaling"]))
    return fused(module, query, key, *further, **named)


@contextmanager
def recorded(config: PreTrainedConfig) -> Iterator[list[Heads]]:
    """Within the block, record queries and keys of the encoder with this config; yield them in the order of layers."""
    record = list[Heads]()
    token = _record.set(record)
    try:
        with calling(config, NAME, attention):
            yield record
    finally:
        _record.reset(token)


class VisionEncoder(nn.Module):
    """Patch features of chosen encoder layers, and scores of patches; both without class tokens.

    Args:
        feature_layers: indices into transformers' hidden_states; several are concatenated along the width; none: the
            encoder's final output, which may have one more norm.
        class_tokens: tokens before the patches: 1 for CLIP, 0 for SigLIP.
        reads: scores to return after the features, named as in `selection.selector.Selector`.

    Raises:
        BadModel: a layer or a score that this encoder does not have.
    """

    def __init__(
        self, tower: PreTrainedModel, feature_layers: Sequence[int], class_tokens: int, reads: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.tower = tower
        self.feature_layers = tuple(feature_layers)
        self.class_tokens = class_tokens
        self.depth: int = tower.config.num_hidden_layers
        check_features(self.feature_layers, self.depth)
        self.reads = tuple(parsed(name, self.depth, class_tokens > 0) for name in reads)

    def forward(self, pixel_values: Tensor) -> Tensor | tuple[Tensor, ...]:
        """pixel_values [B, 3, h, w] fp32 -> features [B, N, Dv] in the model's dtype, and the scores if any."""
        if not self.reads:
            return self._features(pixel_values)
        with recorded(self.tower.config) as heads:
            features = self._features(pixel_values)
        if len(heads) != self.depth:
            raise BadModel(
                f"the vision encoder ran {len(heads)} of {self.depth} layers through transformers' attention"
            )
        first = self.class_tokens
        return features, *(score(kind, heads[layer], first) for kind, layer in self.reads)

    def _features(self, pixel_values: Tensor) -> Tensor:
        pixels = pixel_values.to(next(self.tower.parameters()).dtype)
        if not self.feature_layers:
            last: Tensor = self.tower(pixels).last_hidden_state[:, self.class_tokens :]
            return last
        states = self.tower(pixels, output_hidden_states=True).hidden_states
        return torch.cat([states[layer][:, self.class_tokens :] for layer in self.feature_layers], dim=-1)


def score(kind: str, heads: Heads, first: int) -> Tensor:
    """Return one score of the patches, which start at token `first`; for names and shapes see `Selector`.

    The softmax runs over all tokens; the class token is removed after it, without renormalization (FoPru,
    arXiv 2411.14164). "received" is a sum over patches, not a mean: the ranking is the same and the numbers are of
    order one.
    """
    if kind == "patch_key":
        return heads.key[:, :, first:].float().mean(dim=1).to(heads.key.dtype)
    queries = heads.query[:, :, :1] if kind == "class_token" else heads.query[:, :, first:]
    products = torch.matmul(queries.float() * heads.scaling, heads.key.float().transpose(2, 3))
    weights = torch.softmax(products, dim=-1)[:, :, :, first:]
    return weights.sum(dim=3 if kind == "given" else 2).mean(dim=1)
