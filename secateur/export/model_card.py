# SPDX-License-Identifier: Apache-2.0
"""The model card of a bundle: the README.md shown by a hub.

The manifest does not list it, so that the owner may edit it. It has no date, so two exports of the same model and
schedules have the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from secateur.bundle.manifest import Manifest
from secateur.bundle.schedule import FULL, Budget, Schedule
from secateur.checkpoints.hub import DEMO, base_model
from secateur.engines.version import TARGET
from secateur.errors import printable
from secateur.export.parity import Parity

CARD = "README.md"
RUNS_ON = {"cpu": "ONNX Runtime on the CPU", "cuda": "ONNX Runtime on CUDA", "tensorrt": "TensorRT"}
KINDS = {"prune": "", "route": " (routed)", "vision": " (in the encoder)", "downsample": " (smaller image)"}


@dataclass(frozen=True)
class Figures:
    """Size of the files in bytes, and the check against torch (empty without the check)."""

    size: int
    parity: tuple[Parity, ...] = ()

    @classmethod
    def of(cls, folder: Path, manifest: Manifest, parity: Sequence[Parity]) -> Figures:
        """Return the figures of the bundle in `folder`."""
        return cls(sum((folder / name).stat().st_size for name in manifest.files), tuple(parity))


def card(manifest: Manifest, schedules: Sequence[Sequence[Schedule]], figures: Figures) -> str:
    """Return the text of the card; `schedules` are those of each image size, in the manifest's order."""
    name, sizes = _title(manifest.source), [bucket.layout.size for bucket in manifest.buckets]
    runs_on = RUNS_ON[manifest.target]
    lines = [
        *_front_matter(manifest, schedules),
        f"# {name} with vision-token pruning, for {runs_on}",
        "",
        f"A bundle of ONNX graphs, exported by Secateur from {_origin(manifest)}. The decoder is cut into segments, "
        "and small gates between them drop vision tokens. All schedules below share one copy of the weights.",
        "",
        "| | |",
        "|---|---|",
        f"| family | {manifest.model.family}, {manifest.dimensions.layers} decoder layers |",
        f"| target | {manifest.target}: {runs_on} |",
        f"| precision | {manifest.dtype}{_quantization(manifest)} |",
        f"| ONNX opset | {manifest.opset} |",
        f"| images | {manifest.layout.images} in a prompt, of {', '.join(sizes)} |",
        f"| size | {figures.size / 1e6:.1f} MB in {len(manifest.files)} files |",
        "",
        "## Schedules",
        "",
        "*Tokens* is the number of vision tokens in a decoder layer, averaged over the layers, and *pruned* the share "
        "that was dropped. *FLOPs* are those of vision tokens in prefill, over the unpruned value. *KV cache* is the "
        "size of its vision tokens at two bytes per value. *Error* is the largest difference of the logits from torch, "
        "over the largest logit.",
    ]
    for number, (size, own) in enumerate(zip(sizes, schedules, strict=True)):
        lines += ["", f"Images of {size}:"] if len(sizes) > 1 else []
        lines += ["", "| schedule | method | gates (layer: tokens) | tokens | pruned | FLOPs | KV cache | error |"]
        lines += ["|---|---|---|---:|---:|---:|---:|---:|"]
        lines += [_row(schedule, figures, f", {size}" if number else "") for schedule in own]
    lines += [*_use(manifest, runs_on), *_origins(manifest)]
    return "\n".join(lines) + "\n"


def _front_matter(manifest: Manifest, schedules: Sequence[Sequence[Schedule]]) -> Iterator[str]:
    """Return the metadata for the hub; JSON strings are YAML strings."""
    methods = {schedule.method for own in schedules for schedule in own} - {FULL}
    tags = ["secateur", "onnx", "vision-language", "token-pruning", manifest.model.family, *sorted(methods)]
    if manifest.target == TARGET:
        tags.append("tensorrt")
    yield from ("---", "library_name: secateur", "pipeline_tag: image-text-to-text")
    if (base := base_model(manifest.source)) is not None:
        yield f"base_model: {json.dumps(base)}"
    yield "tags:"
    yield from (f"- {json.dumps(tag)}" for tag in tags)
    yield from ("---", "")


def _title(source: str) -> str:
    """Return the name of the model, without its local folders."""
    return printable(" ".join(PurePath(base_model(source) or source).name.split())) or "model"


def _origin(manifest: Manifest) -> str:
    if (base := base_model(manifest.source)) is not None:
        return f"[{base}](https://huggingface.co/{base}) at commit `{manifest.source.rpartition('@')[2]}`"
    if manifest.source == DEMO:
        return "its small demo model"
    return f"the local checkpoint `{_title(manifest.source)}`"


def _quantization(manifest: Manifest) -> str:
    how = manifest.quantization
    return "" if how is None else f", decoder weights in {how}"


def _row(schedule: Schedule, figures: Figures, suffix: str) -> str:
    cost, tokens = schedule.budget, schedule.model.vision_tokens
    errors = {check.name: check.error for check in figures.parity}
    error = errors.get(f"chain, {schedule.name}{suffix}")
    shown = f"{error:.0e}" if error is not None else "other tokens kept" if figures.parity else "not checked"
    cells = (
        f"`{schedule.name}`",
        schedule.method,
        ", ".join(_gates(schedule, tokens)) or "none",
        f"{cost.average_tokens:.1f} of {tokens}",
        f"{cost.compression:.1%}",
        f"{cost.prefill_flops_ratio:.3f}",
        _bytes(cost),
        shown,
    )
    return f"| {' | '.join(cells)} |"


def _gates(schedule: Schedule, alive: int) -> list[str]:
    """Return "4: 36 → 18" for each gate; many routing gates with the same count become one entry."""
    gates = schedule.gates
    if len(gates) > 2 and {(g.kind, g.keep) for g in gates} == {("route", gates[0].keep)}:
        return [f"{gates[0].layer} to {gates[-1].layer}: {alive} → {gates[0].keep}{KINDS['route']}"]
    made = []
    for gate in gates:
        made.append(f"{gate.layer}: {alive} → {gate.keep}{KINDS[gate.kind]}")
        alive = alive if gate.kind == "route" else gate.keep
    return made


def _bytes(cost: Budget) -> str:
    total = sum(cost.kv_bytes)
    return f"{total / 1e6:.1f} MB" if total >= 1e5 else f"{total / 1e3:.1f} kB"


def _use(manifest: Manifest, runs_on: str) -> Iterator[str]:
    pruned = next((name for name in manifest.schedules if name != FULL), FULL)
    ask = f'secateur run bundle --schedule {pruned} --image picture.png --prompt "what is in the picture ?"'
    device = {"cuda": " --device cuda", "tensorrt": " --backend trt"}.get(manifest.target, "")
    yield from ("", "## How to run it", "", "```console", "pip install secateur huggingface_hub")
    yield "hf download ORGANISATION/NAME --local-dir bundle"
    if runs_on == RUNS_ON["tensorrt"]:
        yield "secateur build bundle"
    yield from (ask + device, "```", "")
    yield "Download a copy with `--local-dir`: a bundle cannot be loaded from the links in the hub's cache."
    yield "Every answer has a receipt with the number of vision tokens kept by each gate."


def _origins(manifest: Manifest) -> Iterator[str]:
    made = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    yield from ("", "## Origin", "")
    yield f"Fingerprint of the weights: `{manifest.model.fingerprint}`. Made with {made}."
    yield ""
    base = base_model(manifest.source)
    model = f"[{base}](https://huggingface.co/{base})" if base else "the base model"
    yield f"The weights are those of {model}, and its license applies to them; state it as `license` when you publish."
