# SPDX-License-Identifier: Apache-2.0
"""One look at a decoder when it is loaded: can it be cut into segments that compute what transformers computes?

A segment runs decoder layers with our mask, positions and cache, and the last one the norm and the head. So anything
else that the decoder's `forward` does would be lost. One factor on the rows that enter the first layer is allowed
(Granite's embedding_multiplier): embedding and projector apply it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur.decoder import attention
from secateur.decoder.pieces import Decoder
from secateur.errors import BadModel, first_line

PIECES = ("embed_tokens", "layers", "rotary_emb", "norm")
ROWS = 4
"""Rows of the comparison: within the window of any layer."""
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
MEND = "choose a checkpoint with another decoder, such as Llama, Mistral, Qwen2, Qwen3, Gemma, Granite or SmolLM"


class _Entered(Exception):
    """Carries the rows that enter the first layer."""


def check_structure(model: PreTrainedModel) -> None:
    """Check that the decoder of a model has the pieces of a segment, and dense layers.

    Raises:
        BadModel: it has not, or it has experts.
    """
    text: Any = model.get_decoder()
    kind = type(text).__name__
    for name in PIECES:
        if not isinstance(getattr(text, name, None), nn.Module):
            raise BadModel(f"the decoder {kind} has no '{name}', so it cannot be cut into segments; {MEND}")
    for name, _ in text.layers.named_modules():
        if name.rpartition(".")[2] in ("experts", "block_sparse_moe"):
            raise BadModel(
                f"the decoder {kind} has experts (layers.{name}): each row takes other weights, which no graph of "
                f"fixed shapes can; {MEND}"
            )


def entry_scale(text: nn.Module) -> float:
    """Return the factor that a language model applies to `inputs_embeds` before its first layer.

    Raises:
        BadModel: it does something else to them.
    """
    weight = next(text.parameters())
    width = int(text.config.hidden_size)  # type: ignore[union-attr, arg-type]
    device = "cpu" if weight.is_meta else weight.device  # weights in files are read for each run
    ones = torch.ones(1, ROWS, width, dtype=weight.dtype, device=device)
    scale = float(_entering(text, ones)[0, 0, 0])
    rows = _random(1, width, weight.dtype).to(device)
    found = _entering(text, rows)
    if found.shape != rows.shape or not _error(found, rows * scale) <= TOLERANCE[weight.dtype]:
        raise BadModel(
            f"the decoder {type(text).__name__} changes its rows before the first layer, and not only by a factor; "
            f"{MEND}"
        )
    return scale


def check_decoder(text: nn.Module, decoder: Decoder, scale: float) -> None:
    """Compare a decoder, cut into layers, with `text`, its language model in transformers: norm included, on few rows.

    Layers of every kind are run, not all layers. `scale` is `entry_scale(text)`.

    Raises:
        BadModel: the results differ, or a layer cannot be run.
    """
    kind, dtype = type(text).__name__, next(text.parameters()).dtype
    rows = _random(2, decoder.config.hidden_size, dtype)
    try:
        with torch.no_grad(), _first_layers(text, kinds(decoder.layers)) as count:
            causal = attention.additive_mask(torch.ones(2, ROWS), ROWS, 0, dtype)  # some decoders read both ways
            expected = text(inputs_embeds=rows, attention_mask=causal, use_cache=False).last_hidden_state
            found = _in_two_steps(decoder, count, rows * scale)
        error = _error(found, expected)
    except BadModel:
        raise
    except Exception as problem:  # transformers has hundreds of decoders, which fail in their own ways
        raise BadModel(f"the decoder {kind} cannot be cut into segments ({first_line(problem)}); {MEND}") from problem
    if not error <= TOLERANCE[dtype]:
        raise BadModel(
            f"the decoder {kind} computes something beside its layers (error {error:.1e} without it), which segments "
            f"would leave out; {MEND}"
        )


def _in_two_steps(decoder: Decoder, count: int, rows: Tensor) -> Tensor:
    """Run rows [B, S, D] through the first layers and the norm: all but the last, then the last with the others cached.

    Raises:
        BadModel: a layer does not use the cache.
    """
    found, past = list[Tensor](), dict[int, tuple[Tensor, Tensor]]()
    for start, end in ((0, ROWS - 1), (ROWS - 1, ROWS)):
        part, tap = rows[:, start:end], attention.Tap(past=dict(past))
        mask = attention.additive_mask(torch.ones(1, end), end - start, start, rows.dtype)
        positions = decoder.rotary(part, torch.arange(start, end)[None])
        with attention.active(decoder.config):
            for layer in decoder.layers[:count]:
                part = attention.run_layer(layer, part, mask, positions, tap)
        if sorted(tap.rows) != list(range(count)) or tap.query is None:
            raise BadModel(f"the layers of {type(decoder.layers[0]).__name__} do not use transformers' cache; {MEND}")
        past = tap.rows
        found.append(decoder.norm(part))
    return torch.cat(found, dim=1)


def kinds(layers: nn.ModuleList) -> int:
    """Return how many of the first layers contain one of every kind: equal modules with equal settings."""
    first = dict[str, int]()
    for number, layer in enumerate(layers):
        modules = [(name, type(module).__name__, _settings(module)) for name, module in layer.named_modules()]
        first.setdefault(repr(modules), number)
    return 1 + max(first.values())


def _settings(module: nn.Module) -> dict[str, Any]:
    """Return the plain attributes of a module, without its number."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str)}
    return {name: value for name, value in plain.items() if name != "layer_idx"}


@contextmanager
def _first_layers(text: nn.Module, count: int) -> Iterator[int]:
    """Within the block, `text` has only its first `count` layers."""
    layers: Any = text.layers
    text.layers = layers[:count]
    try:
        yield count
    finally:
        text.layers = layers


@torch.no_grad()
def _entering(text: nn.Module, rows: Tensor) -> Tensor:
    """Return the rows that enter the first layer of `text` for `inputs_embeds` rows."""

    def stop(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        raise _Entered(arguments[0] if arguments else named["hidden_states"])

    layers: Any = text.layers
    hook = layers[0].register_forward_pre_hook(stop, with_kwargs=True, prepend=True)  # before its weights are read
    try:
        text(inputs_embeds=rows, use_cache=False)
    except _Entered as entered:
        found: Tensor = entered.args[0]
        return found
    except Exception as problem:  # see `check_decoder`
        kind = type(text).__name__
        raise BadModel(f"the decoder {kind} cannot be cut into segments ({first_line(problem)}); {MEND}") from problem
    finally:
        hook.remove()
    raise BadModel(f"the decoder {type(text).__name__} does not run its layers in order; {MEND}")


def _random(batch: int, width: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(batch, ROWS, width, device="cpu", generator=torch.Generator().manual_seed(0)).to(dtype)


def _error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest magnitude of `expected`."""
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max().clamp(min=1e-12))
