# SPDX-License-Identifier: Apache-2.0
"""What the folder of a checkpoint says: files, settings and tensors, each of which is used, reported or refused.

The settings of answers (generation_config.json) and the chat template are read by modules of their own; `about` lists
what they found.

`load_model.load` refuses and warns by this list, and `secateur inspect CHECKPOINT` prints it.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

from secateur.bundle.prompt import Prompt
from secateur.bundle.sampling import Sampling
from secateur.checkpoints.checkpoint import INDEX, PICKLES, SINGLE
from secateur.checkpoints.hub import FILES, weight_files
from secateur.errors import BadModel, SecateurWarning

ADAPTER = "adapter_config.json"
ADAPTERS = (ADAPTER, "adapter_model*", "non_lora_trainables.bin")
BUFFERS = ("inv_freq", "position_ids", "num_batches_tracked", "masked_bias")
"""Last part of the names of buffers that older versions of transformers stored; the model makes its own."""
COPIES = (*PICKLES, "*.h5", "*.msgpack", "*.gguf", "*.onnx", "*.ot", "consolidated*.safetensors")
"""The same weights in other formats."""
SILENT = (
    *COPIES, "README*", "LICENSE*", "NOTICE*", "*.md", "*.txt", ".*", "*.png", "*.jpg", "*.jpeg", "*.svg", "*.pdf",
    "*.log", "*.py", "trainer_state.json", "*_results.json", "training.json",
)  # fmt: skip
"""Files that change nothing about what the model answers."""
COMMON = frozenset({
    "model_type", "torch_dtype", "attn_implementation", "attention_implementation", "use_flash_attn", "use_cache",
    "use_flash_attention_2", "output_attentions", "rope_theta", "rope_scaling",
    "partial_rotary_factor", "torchscript", "pruned_heads", "tie_encoder_decoder", "use_bfloat16", "tf_legacy_loss",
    "is_decoder", "add_cross_attention", "cross_attention_hidden_size", "finetuning_task", "task_specific_params",
    "tokenizer_class", "prefix", "sep_token_id", "quantization_config", "auto_map", "transformers.js_config",
    "ignore_index", "tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id",
})  # fmt: skip
"""Settings that every configuration may have, now or in earlier versions of transformers."""

PUBLISHED = (
    "vocab_size", "vision_config.vocab_size", "vision_config.in_chans", "vision_config.spatial_patch_size",
    "vision_token_id", "text_config.num_image_tokens", "vision_config.projection_dim", "vision_config.out_hidden_size",
)  # fmt: skip
"""Settings without effect in the checkpoints that the families' authors published, so a warning would be noise."""
LISTED = 5
"""Names of one kind in a warning."""
Use = Literal["used", "not read", "refused"]


@dataclass(frozen=True)
class Item:
    """A part of a checkpoint, and what becomes of it. `told`: the user is warned of it."""

    kind: Literal["file", "setting", "tensor", "answers", "template"]
    name: str
    use: Use
    note: str = ""
    told: bool = False


def check_adapter(folder: Path, name: str) -> None:
    """Refuse a folder with an adapter (LoRA), with or without the weights of its base model beside it.

    Raises:
        BadModel: there is one; names the base, and how to merge both.
    """
    found = next((item.name for item in files(folder) if item.use == "refused"), None)
    if found is None:
        return
    try:
        settings = json.loads((folder / ADAPTER).read_text(encoding="utf-8-sig"))
        base, kind = str(settings["base_model_name_or_path"]), str(settings.get("peft_type") or "PEFT")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        base, kind = "its base model", "PEFT"
    raise BadModel(
        f"model '{name}' has an adapter ({found}, {kind}) for {base}, which would be left out; merge it into the base "
        "with peft's merge_and_unload(), write that with save_pretrained, and give the new folder"
    )


def about(sampling: Sampling, prompt: Prompt) -> list[Item]:
    """List the settings of answers that differ from plain greedy decoding, and the limits of the chat template."""
    found = [Item("answers", f"{name} {value}", "used") for name, value in sampling.changed().items()]
    if prompt.one_question:
        found.append(Item("template", "further questions", "refused", prompt.one_question))
    for who, rules in (("question", prompt.question), ("answer", prompt.answer)):
        found += [Item("template", f"{who} with {text!r}", "refused", "it is rewritten") for text in rules.rewritten]
    return found


def files(folder: Path) -> list[Item]:
    """List the files of a checkpoint; those in subfolders only if one of them is read."""
    weights = {SINGLE} if (folder / SINGLE).is_file() else {INDEX, *weight_files(folder)}
    found = []
    deeper = (path for pattern in FILES if "/" in pattern for path in folder.glob(pattern))
    for path in sorted({*folder.iterdir(), *deeper}):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            continue
        if any(fnmatch(name, pattern) for pattern in ADAPTERS):
            found.append(Item("file", name, "refused", "an adapter, which is not merged into the weights"))
        elif name in weights or (name != INDEX and any(fnmatch(name, pattern) for pattern in FILES)):
            found.append(Item("file", name, "used"))
        else:
            found.append(Item("file", name, "not read", told=not any(fnmatch(name, pattern) for pattern in SILENT)))
    return found


def inventory(folder: Path, config: Mapping[str, Any]) -> list[Item]:
    """List the files, and the settings of config.json that its class in transformers does not declare.

    Nothing may read such a setting. `config` is config.json.

    Raises:
        ValueError, TypeError: transformers cannot read the configuration.
    """
    read = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    found = files(folder)
    return found + [Item("setting", x, "not read", told=x not in PUBLISHED) for x in _undeclared(config, read)]


def _undeclared(config: Mapping[str, Any], read: PreTrainedConfig, outer: str = "") -> Iterator[str]:
    parts = {name: getattr(read, name) for name in type(read).sub_configs}
    known = _declared(read).union(COMMON, parts, GenerationConfig().to_dict())
    if "text_config" not in config and "text_config" in parts:  # older Qwen-VL files have these settings at the top
        known |= _declared(parts["text_config"])
    for name, value in config.items():
        if isinstance(value, Mapping) and isinstance(parts.get(name), PreTrainedConfig):
            yield from _undeclared(value, parts[name], f"{outer}{name}.")
        elif name not in known and not name.startswith("_"):
            yield f"{outer}{name}"


def _declared(read: PreTrainedConfig) -> set[str]:
    return {field.name for field in dataclasses.fields(read)} | set(read.attribute_map)


def warn_unread(items: Iterable[Item], name: str) -> None:
    """Warn once of everything in a checkpoint that nothing reads, and that may matter."""
    told = [item for item in items if item.told]
    said = []
    for kind in ("file", "setting", "tensor"):
        names = [item.name for item in told if item.kind == kind]
        if names:
            more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            said.append(f"{kind}{'s' * (len(names) > 1)} {', '.join(names[:LISTED])}{more}")
    if said:
        shown = f"secateur inspect --model {shlex.quote(name)}"
        text = f"model '{name}' has what nothing reads: {'; '.join(said)} (all: {shown})"
        warnings.warn(text, SecateurWarning, stacklevel=2)


def extra_tensors(names: Iterable[str], model: nn.Module, source: str) -> tuple[Item, ...]:
    """List the tensors that `model` has no parameter for, except buffers that it makes itself.

    Raises:
        BadModel: one could be a parameter of a module that exists, such as a bias that config.json turns off, or of one
            more layer; without it the model would answer otherwise than it was trained to.
    """
    modules = dict(model.named_modules())
    layers = {re.sub(r"\d+", "#", name) for name in modules}
    extra = list[Item]()
    for name in names:
        owner, _, last = name.rpartition(".")
        if last in BUFFERS or (owner in modules and getattr(modules[owner], last, None) is not None):
            continue
        if owner in modules and owner:
            raise BadModel(
                f"model '{source}' has {name}, and its config.json makes a {type(modules[owner]).__name__} without it; "
                "correct the setting that turns it off (such as attention_bias or mlp_bias)"
            )
        if re.sub(r"\d+", "#", owner) in layers and owner:
            raise BadModel(
                f"model '{source}' has {name}, for which its config.json has no layer; correct its number of layers, "
                "or download it again"
            )
        extra.append(Item("tensor", name, "not read", told=True))
    return tuple(extra)
