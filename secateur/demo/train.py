# SPDX-License-Identifier: Apache-2.0
"""Training recipe of the demo model, determined by the seed and the numbers of steps.

    python -m secateur.demo.train --out build/demo-model            about an hour on 2 CPU cores, less on a GPU
    python -m secateur.demo.train --out build/demo-model --resume   continue after a kill
    python -m secateur.demo.train --evaluate                        held-out accuracy of the model in the package

Stage 1 trains the tower to classify every patch (_dense.py); stage 2 trains the decoder to answer (_language.py). After
both, the model is measured and written as fp16 safetensors, in one rename. If other programs share the cores,
OMP_NUM_THREADS=1 is faster than threads that wait for each other.
"""

import argparse
import json
import os
import platform
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from secateur.bundle.atomic import OwnFolder, atomic_folder, check_folder_free
from secateur.demo import model_directory
from secateur.demo._dense import DenseStage
from secateur.demo._language import LanguageStage
from secateur.demo._loop import Stage, train
from secateur.demo.build import build_model, build_processor
from secateur.demo.scenes import KINDS, SceneSample, samples
from secateur.errors import BadModel, BadOutput, InputError, printable

__all__ = ["accuracy", "answers", "main", "make", "save", "train_model"]


REPORT = "training.json"


def _is_trained(folder: Path) -> bool:
    """Return whether a folder has a report of this recipe."""
    try:
        found = json.loads((folder / REPORT).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"dense", "language", "accuracy"} <= set(found)


TRAINED = OwnFolder("a model of this recipe", _is_trained)


def main(argv: list[str] | None = None) -> int:
    """Parse, train or evaluate, print the accuracies."""
    options = _parser().parse_args(argv)
    console = Console(stderr=True)
    try:
        _check(options)
        shares = accuracy(options.out, options.questions) if options.evaluate else make(options, console)
        console.print(_table(shares))
    except InputError as mistake:
        said = printable(str(mistake))
        console.print(f"secateur: error: {said}", highlight=False, markup=False, soft_wrap=True)
        return mistake.exit_code
    return 0


def make(options: argparse.Namespace, console: Console) -> dict[str, float]:
    """Train, write and measure the model, and only then replace the old one."""
    model, report = train_model(options, console)
    with atomic_folder(options.out, options.force, TRAINED) as fresh:
        save(model, fresh)
        shares = accuracy(fresh, options.questions)
        (fresh / REPORT).write_text(json.dumps({**report, "accuracy": shares}, indent=2) + "\n")
    return shares


def _check(options: argparse.Namespace) -> None:
    """Refuse options that would fail later or overwrite results."""
    if options.evaluate:
        if not (options.out / "config.json").exists():
            raise BadModel(f"{options.out} contains no model; set --out to the folder of a model")
        return
    for name in ("questions", "dense_steps", "language_steps", "dense_batch", "language_batch"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be at least 1")
    if options.workers < 0 or not 0 <= options.seed < 2**32:
        raise InputError("--workers must be at least 0, and --seed between 0 and 4294967295")
    check_folder_free(options.out, options.force, TRAINED)
    if options.resume and not any(options.work.glob("*.pt")):
        raise InputError(f"{options.work} contains no checkpoint; omit --resume")
    if any(options.work.glob("*.pt")) and not options.resume:
        raise BadOutput(
            f"{options.work} contains checkpoints; use --resume to continue, or another --work to start again"
        )


def train_model(options: argparse.Namespace, console: Console) -> tuple[LlavaForConditionalGeneration, dict[str, Any]]:
    """Train both stages, and return the model and a report."""
    options.work.mkdir(parents=True, exist_ok=True)
    model = build_model(options.seed)
    model.train()
    # Method of nn.Module, because transformers' wrapper has a type for another self.
    torch.nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
    if model.device.type == "cpu":
        # For short sequences, plain matrix products are faster than the fused kernel, whose backward is slow on CPU.
        model.set_attn_implementation("eager")
    if options.compile:
        for layer in model.model.language_model.layers:
            layer.compile()
    workers = options.workers
    dense = DenseStage(model, options.dense_steps, options.seed, options.dense_batch)
    language = LanguageStage(model, options.language_steps, options.seed, options.language_batch)
    seconds = {}
    stages: tuple[Stage, ...] = (dense, language)
    for stage in stages:
        seconds[stage.name] = round(train(stage, options.work, console, resume=options.resume, workers=workers))
        if stage is dense:
            patches = dense.accuracy("validation")
            console.print("patches of unseen writers:", {name: round(share, 3) for name, share in patches.items()})
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    report = {
        "seed": options.seed,
        "dense": {"steps": dense.steps, "batch": dense.batch, "seconds": seconds["dense"], "validation": patches},
        "language": {"steps": language.steps, "batch": language.batch, "seconds": seconds["language"]},
        "versions": {**versions, "transformers": transformers.__version__},
        "device": model.device.type,
    }
    return model, report


def save(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write fp16 weights, tokenizer, processor and chat template into the folder."""
    halved = LlavaForConditionalGeneration(model.config)
    halved.load_state_dict(model.state_dict())
    torch.nn.Module.half(halved)
    halved.save_pretrained(folder)
    build_processor().save_pretrained(folder)
    for each in folder.iterdir():
        each.chmod(0o644)  # weights are saved readable by their owner only, and a package would keep this mode


def accuracy(directory: Path, count: int = 1000, split: str = "test", seed: int = 0) -> dict[str, float]:
    """Return the share of questions with exactly the right word as answer: "overall" and per kind."""
    asked = list(samples(split, count, seed))
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for sample, answer in zip(asked, answers(directory, asked), strict=True):
        right[sample.kind].append(answer == sample.answer)
    everything = [each for kind in right.values() for each in kind]
    shares = {kind: sum(each) / len(each) for kind, each in right.items() if each}
    return {"overall": sum(everything) / len(everything), **shares}


@torch.inference_mode()
def answers(directory: Path, asked: list[SceneSample], batch: int = 50) -> list[str]:
    """Return the model's greedy answer to each sample, in order."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    processor: LlavaProcessor = LlavaProcessor.from_pretrained(directory)
    model: Any = LlavaForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    model.to(device).eval()
    prompts = [prompt(processor, sample.question) for sample in asked]
    # A batch has questions of equal length, so that no prompt needs padding.
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, text in enumerate(prompts):
        by_length[len(processor.tokenizer(text).input_ids)].append(index)

    found: dict[int, str] = {}
    for indices in by_length.values():
        for first in range(0, len(indices), batch):
            chunk = indices[first : first + batch]
            images = [asked[index].image for index in chunk]
            inputs = processor(images=images, text=[prompts[index] for index in chunk], return_tensors="pt").to(device)
            output = model.generate(**inputs, max_new_tokens=2, do_sample=False)
            new = output[:, inputs["input_ids"].shape[1] :]
            texts = processor.tokenizer.batch_decode(new, skip_special_tokens=True)
            found.update(zip(chunk, (text.strip() for text in texts), strict=True))
    return [found[index] for index in range(len(asked))]


def prompt(processor: LlavaProcessor, question: str) -> str:
    """Return the chat template's text for one image with one question."""
    content: Any = [{"type": "image"}, {"type": "text", "text": question}]
    return str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m secateur.demo.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=model_directory(), help="model directory to write or to evaluate")
    parser.add_argument("--work", type=Path, default=Path("build/demo-training"), help="folder of the checkpoints")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoints in --work")
    parser.add_argument("--force", action="store_true", help="replace --out if it exists")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dense-steps", type=int, default=6000, help="steps of stage 1")
    parser.add_argument("--dense-batch", type=int, default=32, help="scenes per step of stage 1")
    parser.add_argument("--language-steps", type=int, default=2600, help="steps of stage 2")
    parser.add_argument("--language-batch", type=int, default=16, help="scenes per step of stage 2")
    spare = min(8, max(1, (os.cpu_count() or 1) - 1))
    parser.add_argument(
        "--workers", type=int, default=spare, help="processes that generate scenes; 0: the training process"
    )
    parser.add_argument("--compile", action="store_true", help="compile the decoder: 1.5 times faster, needs g++")
    parser.add_argument("--evaluate", action="store_true", help="only measure the model in --out")
    parser.add_argument("--questions", type=int, default=1000, help="held-out questions to measure it on")
    return parser


def _table(shares: Mapping[str, float]) -> Table:
    table = Table("questions", "accuracy", title="unseen writers")
    for kind, share in shares.items():
        table.add_row(kind, f"{share:.1%}")
    return table


if __name__ == "__main__":
    sys.exit(main())
