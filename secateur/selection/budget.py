# SPDX-License-Identifier: Apache-2.0
"""Token budgets of all methods.

A gate at layer p reduces the tokens of layers p and later. "Retain 128 tokens" in papers is the number of vision tokens
in a decoder layer, averaged over all layers; "compression" is 1 - average / vision tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from secateur.bundle.layout import Dimensions
from secateur.bundle.schedule import Budget, Gate, check_gates
from secateur.bundle.strict_json import Json
from secateur.errors import BadSchedule


@dataclass(frozen=True)
class BudgetRequest:
    """The user's budget. The method decides the fields that are not set.

    keep         kept tokens of each gate: shares of the original tokens (below 1, or 1.0 for all) or counts
    compression  average share of vision tokens that a decoder layer does not process
    layers       decoder layers whose entry gets a gate
    """

    keep: tuple[float, ...] | None = None
    compression: float | None = None
    layers: tuple[int, ...] | None = None

    def check(self) -> None:
        """Check that at most one of keep and compression is set."""
        if self.keep is not None and self.compression is not None:
            raise BadSchedule("--keep and --compression both set the budget; give one of them")


@dataclass(frozen=True)
class GatePlan:
    """Layers of the gates and the tokens that each keeps; `moved` is (wanted, used layer) if the first gate moved."""

    layers: tuple[int, ...]
    counts: tuple[int, ...]
    moved: tuple[int, int] | None = None

    def gates(self, constants: Json | None = None) -> tuple[Gate, ...]:
        """Return the gates, all with the same constants."""
        pairs = zip(self.layers, self.counts, strict=True)
        return tuple(Gate(layer, count, selector=dict(constants or {})) for layer, count in pairs)

    def report(self) -> Json:
        """Return the plan's part of a calibration report."""
        return {"moved": list(self.moved) if self.moved else None}


def alive(layers: int, vision_tokens: int, gates: Iterable[Gate]) -> tuple[int, ...]:
    """Return the number of vision tokens in each of `layers` decoder layers."""
    tokens = [vision_tokens] * layers
    for gate in gates:
        tokens[gate.layer :] = [gate.keep] * (layers - gate.layer)
    return tuple(tokens)


def budget(dimensions: Dimensions, vision_tokens: int, gates: Iterable[Gate]) -> Budget:
    """Return the cost of the gates, in every unit (arXiv 2505.22038, section 5, for the FLOPs)."""
    tokens = alive(dimensions.layers, vision_tokens, gates)
    average = sum(tokens) / dimensions.layers
    flops = sum(_layer_flops(n, dimensions) for n in tokens)
    full = dimensions.layers * _layer_flops(vision_tokens, dimensions)
    row_bytes = 2 * 2 * dimensions.kv_heads * dimensions.head_dim
    return Budget(
        average_tokens=round(average, 6),
        compression=round(1 - average / vision_tokens, 6),
        prefill_tflops=round(flops / 1e12, 9),
        prefill_flops_ratio=round(flops / full, 6),
        kv_bytes=tuple(n * row_bytes for n in tokens),
    )


def _layer_flops(n: int, dimensions: Dimensions) -> int:
    d, m = dimensions.width, dimensions.mlp_width
    return 4 * n * d * d + 2 * n * n * d + 3 * n * d * m


def schedule_name(method: str, cost: Budget) -> str:
    """Return "<method>-<percent of tokens kept, averaged over layers>", such as btp-22."""
    return f"{method}-{100 * (1 - cost.compression):.0f}"


def spread(values: Sequence[float], count: int) -> tuple[float, ...]:
    """Interpolate values linearly for `count` gates; first and last value stay, a single gate gets the first."""
    if count == len(values):
        return tuple(values)
    if count == 1 or len(values) == 1:
        return (values[0],) * count
    out = []
    for i in range(count):
        whole, rest = divmod(i * (len(values) - 1), count - 1)
        part = rest / (count - 1)
        out.append(values[whole] * (1 - part) + values[whole + 1] * part if rest else values[whole])
    return tuple(out)


def increasing(layers: Sequence[float], model_layers: int, earliest: int = 1) -> tuple[int, ...]:
    """Round layers to integers that increase strictly within [earliest, model_layers - 1].

    Raises:
        BadSchedule: the model has no room for that many gates.
    """
    room = model_layers - earliest
    if len(layers) > room:
        raise BadSchedule(
            f"{len(layers)} gates do not fit a model of {model_layers} layers (at most {max(room, 0)}); "
            "give fewer with --layers"
        )
    out: list[int] = []
    for layer in layers:
        out.append(max(round(layer), out[-1] + 1 if out else earliest))
    return tuple(min(layer, model_layers - len(out) + i) for i, layer in enumerate(out))


def kept(share: float, vision_tokens: int) -> int:
    """Return `share` of the tokens, to the nearest integer, halves down (as N // 2), at least 1 for a share above 0."""
    return max(1, math.ceil(share * vision_tokens - 0.5 - 1e-9)) if share > 0 else 0


def counts(keep: Sequence[float], vision_tokens: int) -> tuple[int, ...]:
    """Convert shares of the original tokens (below 1, or 1.0 for all) or counts (above 1) to counts for each gate.

    Raises:
        BadSchedule: a value is neither, a count is above `vision_tokens`, or counts increase.
    """
    out: list[int] = []
    for value in keep:
        if not math.isfinite(value) or value < 0:
            raise BadSchedule(f"keep {value:g} must be at least 0; use a share such as 0.5 or a count such as 288")
        if value > 1 and value != int(value):
            raise BadSchedule(f"keep {value:g} is neither a share (at most 1) nor a whole count of tokens")
        count = int(value) if value > 1 else kept(value, vision_tokens)
        bound = out[-1] if out else vision_tokens
        if count > bound:
            why = "kept counts must not grow" if out else "the model has no more vision tokens"
            raise BadSchedule(f"keep {value:g} is {count} tokens of {bound}; {why}")
        out.append(count)
    return tuple(out)


def counts_for(
    compression: float,
    layers: Sequence[int],
    shape: Sequence[float],
    model_layers: int,
    vision_tokens: int,
    drop: int | None = None,
    earliest: int = 0,
) -> tuple[int, ...]:
    """Return the kept tokens of gates at `layers`: the shares `shape`, scaled to be nearest to `compression`.

    Counts are within [1, vision_tokens] and never increase. From layer `drop` on no token is left.

    Raises:
        BadSchedule: the first gate comes too late for this compression; the message gives the latest possible layer.
    """
    if not 0 <= compression < 1:
        raise BadSchedule(f"compression {compression:g} must be at least 0 and below 1")
    if any(b > a for a, b in zip(shape, shape[1:], strict=False)) or min(shape) <= 0:
        raise BadSchedule(f"keep shares {tuple(shape)} must be above 0 and must not grow")
    if compression > reachable(layers[0], model_layers, vision_tokens, drop):
        raise BadSchedule(_too_late(compression, layers[0], model_layers, vision_tokens, drop, earliest))

    ends = [*layers[1:], model_layers if drop is None else drop]
    spans = [end - layer for layer, end in zip(layers, ends, strict=True)]
    wanted = (1 - compression) * model_layers * vision_tokens - layers[0] * vision_tokens

    def at(factor: float) -> tuple[int, ...]:
        return tuple(min(kept(factor * share, vision_tokens), vision_tokens) for share in shape)

    def error(factor: float) -> float:
        return sum(n * span for n, span in zip(at(factor), spans, strict=True)) - wanted

    # A count steps up where factor * share * N passes a half: these are all factors at which the sum changes.
    steps = sorted({(n + 0.5) / (share * vision_tokens) + 1e-6 for share in shape for n in range(vision_tokens)})
    steps.insert(0, steps[0] / 2)
    low, high = 0, len(steps) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if error(steps[middle]) <= 0 else (low, middle)
    return at(min((steps[low], steps[high]), key=lambda factor: abs(error(factor))))


def reachable(first: int, model_layers: int, vision_tokens: int, drop: int | None = None) -> float:
    """Return the highest compression if the first gate, at layer `first`, leaves one token, and none from `drop` on."""
    end = model_layers if drop is None else drop
    return 1 - (first * vision_tokens + (end - first)) / (model_layers * vision_tokens)


def _fitting(compression: float, first: int, earliest: int, layers: int, tokens: int, drop: int | None) -> list[int]:
    """Return the layers of a first gate that reach `compression`, from `first` down to `earliest`."""
    return [p for p in range(first, earliest - 1, -1) if compression <= reachable(p, layers, tokens, drop)]


def _too_late(compression: float, first: int, layers: int, tokens: int, drop: int | None, earliest: int) -> str:
    bound = math.floor(100 * reachable(first, layers, tokens, drop)) / 100
    allows = f"layer {first} of {layers} allows at most {bound:.2f}"
    fits = _fitting(compression, first, earliest, layers, tokens, drop)
    if not fits:
        return f"compression {compression:g} is out of reach for {tokens} tokens ({allows}); use a lower --compression"
    mend = "use --layers or a lower --compression"
    return f"compression {compression:g} needs a first gate at layer {fits[0]} or earlier ({allows}); {mend}"


def plan(
    request: BudgetRequest,
    model_layers: int,
    vision_tokens: int,
    layers: Sequence[float],
    shares: Sequence[float],
    drop: int | None = None,
    earliest: int = 1,
) -> GatePlan:
    """Return layers and counts for the user's request, with the method's defaults for the rest.

    Args:
        layers: the method's layers; interpolated to the number of gates in the request.
        shares: the method's shares of kept tokens; with a compression, their ratios.
        drop: layer from which the method removes every token, or None.
        earliest: first layer at which the method can prune; 1 if it reads the layer before.

    Layers in the request are never moved. The method's own first gate moves earlier if the compression cannot be
    reached otherwise, or if, with more gates after it, it would keep less than half of its share.

    Raises:
        BadSchedule: the request contradicts itself or cannot be met.
    """
    request.check()
    if request.layers == () or request.keep == ():
        raise BadSchedule("--layers and --keep need at least one value")
    number = len(request.layers or request.keep or layers)
    if request.keep is not None and len(request.keep) != number:
        raise BadSchedule(f"--keep has {len(request.keep)} values for {number} layers; give one for each")
    if request.layers is None:
        placed = increasing(spread(layers, number), model_layers, earliest)
    else:
        placed = tuple(request.layers)
        check_gates(tuple(Gate(layer, vision_tokens) for layer in placed), model_layers, vision_tokens)
        if placed[0] < earliest:
            raise BadSchedule(f"the first gate at layer {placed[0]} must be at layer {earliest} or later")
    if drop is not None and drop <= placed[-1]:
        raise BadSchedule(f"the final drop at layer {drop} must come after the last gate at layer {placed[-1]}")
    if request.keep is not None:
        return GatePlan(placed, counts(request.keep, vision_tokens))
    shape = spread(shares, number)
    if request.compression is None:
        return GatePlan(placed, counts(shape, vision_tokens))
    asked: float = request.compression
    moved = None
    if request.layers is None:
        fits = _fitting(asked, placed[0], earliest, model_layers, vision_tokens, drop)

        def keeps_enough(first: int) -> bool:
            """Return whether the first gate keeps half of its share; if not, later gates would keep too few tokens."""
            found = counts_for(asked, (first, *placed[1:]), shape, model_layers, vision_tokens, drop)
            return found[0] >= shape[0] * vision_tokens / 2

        enough = (first for first in fits if len(placed) == 1 or keeps_enough(first))
        first = next(enough, fits[-1] if fits else placed[0])
        if first != placed[0]:
            moved, placed = (placed[0], first), (first, *placed[1:])
    kept_tokens = counts_for(asked, placed, shape, model_layers, vision_tokens, drop, earliest)
    return GatePlan(placed, kept_tokens, moved)


def front(request: BudgetRequest, model_layers: int, vision_tokens: int, share: float) -> int:
    """Return the tokens kept by the only gate of a method that prunes before the decoder; `share` is the default.

    Raises:
        BadSchedule: the request names layers or several gates, contradicts itself, or cannot be met.
    """
    if request.layers is not None:
        raise BadSchedule(
            f"--layers {','.join(map(str, request.layers))} does not fit a method whose one gate is placed before "
            "the decoder; leave it out"
        )
    if request.keep is not None and len(request.keep) > 1:
        raise BadSchedule(f"--keep has {len(request.keep)} values for a method with one gate; give one")
    return plan(request, model_layers, vision_tokens, (0,), (share,), earliest=0).counts[0]
