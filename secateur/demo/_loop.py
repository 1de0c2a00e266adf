# SPDX-License-Identifier: Apache-2.0
"""Training loop of both stages: seeded batches by step number, cosine schedule, atomic checkpoints, progress."""

import math
import os
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from secateur.errors import InputError

__all__ = ["Batch", "Stage", "train"]

Batch = dict[str, Any]


class Stage(Protocol):
    """Interface of a training stage. A batch depends only on its step, so a resumed run gets the same batches."""

    name: str
    steps: int
    learning_rate: float
    warmup: int
    module: nn.Module  # all parameters of a checkpoint

    def groups(self) -> list[dict[str, Any]]:
        """Return parameter groups for AdamW; "scale" multiplies the learning rate of a group."""

    def data(self) -> Dataset[Batch]:
        """Return the data set whose item s is the whole batch of step s."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Return the loss and the figures to show with it."""


def train(stage: Stage, folder: Path, console: Console, *, resume: bool, workers: int, save_every: int = 250) -> float:
    """Run the stage to its last step. Return the total seconds, including those before a resume."""
    optimizer = torch.optim.AdamW(stage.groups(), lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.02)
    checkpoint = folder / f"{stage.name}.pt"
    first, seconds = 0, 0.0
    if resume and checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if state["steps"] != stage.steps:
            raise InputError(f"{checkpoint} belongs to a run of {state['steps']} steps, this run has {stage.steps}")
        stage.module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds = state["step"], state["seconds"]
        console.print(f"{stage.name}: resumed at step {first}")

    device = next(stage.module.parameters()).device
    batches = DataLoader(stage.data(), batch_size=None, sampler=range(first, stage.steps), num_workers=workers)
    trainable = [each for group in optimizer.param_groups for each in group["params"]]
    started = time.monotonic() - seconds
    recent: deque[dict[str, float]] = deque(maxlen=50)
    with _progress(console) as progress:
        bar = progress.add_task(stage.name, total=stage.steps, completed=first, note="")
        for step, batch in enumerate(_moved(batches, device), start=first):
            for group in optimizer.param_groups:
                group["lr"] = group["scale"] * _rate(step, stage)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                loss, shown = stage.loss(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()

            done = step + 1
            recent.append({"loss": loss.item(), **shown})
            note = _note(recent, (done - first) / (time.monotonic() - started - seconds))
            progress.update(bar, completed=done, note=note)
            if not console.is_terminal and (done % 50 == 0 or done == stage.steps):
                console.print(f"{stage.name} {done}/{stage.steps} {note}", highlight=False)
            if done % save_every == 0 or done == stage.steps:
                _save(checkpoint, stage, optimizer, done, time.monotonic() - started)
    return time.monotonic() - started


def _rate(step: int, stage: Stage) -> float:
    """Return the learning rate: linear warm-up, then a cosine down to 0.5 %."""
    if step < stage.warmup:
        return stage.learning_rate * (step + 1) / stage.warmup
    share = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return stage.learning_rate * (0.005 + 0.995 * 0.5 * (1 + math.cos(math.pi * share)))


def _save(path: Path, stage: Stage, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
    """Write a temporary file and rename it: after a kill, either the old or the new checkpoint is complete."""
    state = {
        "step": step,
        "steps": stage.steps,
        "seconds": seconds,
        "module": stage.module.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    unfinished = path.with_suffix(".tmp")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def _moved(batches: Iterable[Batch], device: torch.device) -> Iterable[Batch]:
    for batch in batches:
        yield {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _note(recent: deque[dict[str, float]], pace: float) -> str:
    """Return running means over the last steps. A step may omit figures."""
    names = dict.fromkeys(name for each in recent for name in each)
    means = {name: [each[name] for each in recent if name in each] for name in names}
    return "  ".join(f"{name} {sum(each) / len(each):.3f}" for name, each in means.items()) + f"  {pace:.2f} it/s"


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )
