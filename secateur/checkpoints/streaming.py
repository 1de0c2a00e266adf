# SPDX-License-Identifier: Apache-2.0
"""Models whose weights stay in the files of a checkpoint: read before a module runs, freed after it has run.

Parameters in files are on the meta device, with a reference to their file entry, so shapes, dtypes, ties and casts work
as usual; buffers are in memory. Every function here also accepts ordinary models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from secateur.checkpoints.checkpoint import DTYPES, FLOATS, Checkpoint, Entry
from secateur.checkpoints.inventory import extra_tensors
from secateur.errors import BadModel

Model = TypeVar("Model", bound=PreTrainedModel)
GENERATION = "generation_config.json"
HELD_BYTES = 64 << 20
"""Modules up to this size have all their weights in memory while they run; larger ones only their direct parameters."""


Check = Callable[[PreTrainedModel], None]


def unchecked(model: PreTrainedModel) -> None:
    """Check nothing."""


@dataclass(frozen=True)
class Stored:
    """The place of a parameter in a file, and the dtype in which transformers would load it."""

    entry: Entry
    dtype: torch.dtype


def stream(cls: type[Model], folder: Path, check: Check = unchecked) -> Model | None:
    """Return `cls` with weights that stay in the checkpoint in `folder`; `check` sees the model before any is read.

    None: transformers must convert weights of this checkpoint, so it must be loaded as a whole.

    Raises:
        BadModel: see `Checkpoint`; or the checkpoint is quantized.
    """
    model = _placed(cls, folder, check)
    for module in () if model is None else model.modules():
        _hook(module)
        _report_cpu(module)
    return model


def fill(cls: type[Model], folder: Path, check: Check = unchecked) -> Model | None:
    """Return `cls` as `stream` does, with all weights in memory."""
    model = _placed(cls, folder, check)
    if model is not None:
        _put_in(_slots(model))
    return model


def _placed(cls: type[Model], folder: Path, check: Check) -> Model | None:
    """Return `cls` as config.json describes it; its parameters refer to their file entries."""
    checkpoint = Checkpoint.open(folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if getattr(config, "quantization_config", None) is not None:
        raise BadModel(
            f"model '{folder}' is quantized; take the checkpoint in {', '.join(FLOATS)} and export with --quantize"
        )
    stored = (DTYPES[entry.dtype] for entry in checkpoint.tensors.values() if entry.dtype in FLOATS)
    with meta_parameters():
        model: Model = cls._from_config(  # type: ignore[no-untyped-call]
            config, dtype=config.dtype or next(stored, torch.float32), attn_implementation="sdpa"
        )
    check(model)
    found = checkpoint.of(model)
    if found is None:
        return None
    places, extra = found
    model.unread = extra_tensors(extra, model, str(folder))  # type: ignore[assignment]
    _place(model, places)
    if (folder / GENERATION).exists():  # else the defaults of the config
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def value(weight: Tensor) -> Tensor:
    """Return the values of a parameter or buffer in its dtype: read from its file, or shared if in memory."""
    stored: Stored | None = getattr(weight, "stored", None)
    return weight.detach() if stored is None else stored.entry.read().to(stored.dtype).to(weight.dtype)


def is_streamed(module: nn.Module) -> bool:
    """Return whether some weight of `module` is in a file and not in memory."""
    return any(hasattr(weight, "stored") for weight in module.parameters())


@contextmanager
def held(*modules: nn.Module) -> Iterator[None]:
    """Within the block, all weights of `modules` are in memory: for many runs, or code that reads weights directly."""
    put = [slot for module in modules for slot in _slots(module)]
    _put_in(put)
    try:
        yield
    finally:
        _take_out(put)


Slot = tuple[dict[str, Any], str, nn.Parameter]
"""The parameters of a module, the name of one, and the parameter whose values are in a file."""


def _slots(module: nn.Module, recurse: bool = True) -> list[Slot]:
    modules = module.modules() if recurse else (module,)
    return [
        (owner._parameters, name, weight)
        for owner in modules
        for name, weight in owner._parameters.items()
        if weight is not None and hasattr(weight, "stored")
    ]


def _put_in(slots: list[Slot]) -> None:
    read = dict[int, nn.Parameter]()  # tied weights once
    for parameters, name, weight in slots:
        if id(weight) not in read:
            read[id(weight)] = nn.Parameter(value(weight), requires_grad=False)
        parameters[name] = read[id(weight)]


def _take_out(slots: list[Slot]) -> None:
    for parameters, name, weight in slots:
        parameters[name] = weight


def to_device(module: nn.Module, device: str) -> None:
    """Put all tensors of `module` in the memory of `device`: parameters, those in files too, buffers and attributes."""
    moved = dict[int, nn.Parameter]()  # tied weights once
    for parameters, name, weight in _slots(module):
        if id(weight) not in moved:
            moved[id(weight)] = nn.Parameter(value(weight).to(device), requires_grad=False)
        parameters[name] = moved[id(weight)]
    for part in module.modules():
        for name, attribute in list(vars(part).items()):
            if isinstance(attribute, Tensor):
                setattr(part, name, attribute.to(device))
        own: Any = type(part)
        if isinstance(vars(own).get("device"), torch.device):  # see `_report_cpu`
            own.device = torch.device(device)
    module.to(device)


def _hook(module: nn.Module) -> None:
    """Load the weights of `module` while it runs. Has no effect on modules that are `held`, nor in a trace."""
    small = sum(weight.nbytes for weight in module.parameters()) <= HELD_BYTES
    if not small and not module._parameters or next(module.parameters(), None) is None:
        return
    running = list[list[Slot]]()

    def before(_: nn.Module, __: Any) -> None:
        slots = _slots(module, small)
        _put_in(slots)  # not within no_grad(): tracing would record it for every module, and take three times as long
        running.append(slots)

    def after(_: nn.Module, __: Any, ___: Any) -> None:
        if running:  # else it was stopped before its weights were read
            _take_out(running.pop())

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after, always_call=True)


def _report_cpu(module: nn.Module) -> None:
    """Report the CPU as the device of a transformers module: some move their inputs to the device of their weights."""
    if isinstance(module, PreTrainedModel):
        own = type(module)
        module.__class__ = type(own.__name__, (own,), {"__module__": own.__module__, "device": torch.device("cpu")})


def _place(model: PreTrainedModel, places: dict[str, Entry]) -> None:
    """Attach file entries to all parameters, and read the buffers; tied weights that differ in the files are untied."""
    own = dict[int, Entry]()
    for name, weight in model.state_dict(keep_vars=True).items():
        if name not in places:
            continue
        entry = places[name]
        owner = model.get_submodule(name.rpartition(".")[0])
        if not isinstance(weight, nn.Parameter):
            owner.register_buffer(name.rpartition(".")[2], entry.read().to(weight.dtype))
            continue
        if id(weight) in own and not torch.equal(own[id(weight)].read(), entry.read()):
            weight = nn.Parameter(torch.empty_like(weight), requires_grad=False)
            setattr(owner, name.rpartition(".")[2], weight)
        if id(weight) not in own:
            own[id(weight)] = entry
            weight.stored = Stored(entry, weight.dtype)  # type: ignore[attr-defined]
    model.requires_grad_(False)


@contextmanager
def meta_parameters() -> Iterator[None]:
    """Within the block, modules register new parameters on the meta device; buffers are made as usual.

    torch.device("meta") would also apply to buffers that no checkpoint contains, such as rotary frequencies.
    """
    register: Callable[..., None] = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, weight: nn.Parameter | None) -> None:
        if weight is not None and weight.device.type != "meta":
            weight = nn.Parameter(weight.detach().to("meta"), requires_grad=weight.requires_grad)
        register(module, name, weight)

    nn.Module.register_parameter = on_meta  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
