# SPDX-License-Identifier: Apache-2.0
"""The files of a checkpoint directory: which file contains which weight of a model. Only headers are read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from secateur.checkpoints.safetensors_file import MEND, Entry, entries
from secateur.errors import BadModel

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint by the name they are stored under."""

    folder: Path
    tensors: Mapping[str, Entry]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the index file and the headers of its files, or the header of a single file.

        Raises:
            BadModel: a file or a tensor is missing, damaged or outside the folder; or there are only pickles.
        """
        if (folder / SINGLE).exists():
            return cls(folder, entries(folder / SINGLE))
        if (folder / INDEX).exists():
            return cls(folder, _sharded(folder))
        if any(next(folder.glob(pattern), None) for pattern in PICKLES):
            raise BadModel(
                f"model '{folder}' has no safetensors, only pickles, which can run code when they are read; "
                "save it again with transformers' save_pretrained"
            )
        raise BadModel(f"model '{folder}' has neither {SINGLE} nor {INDEX}; {MEND}")

    def of(self, model: PreTrainedModel) -> dict[str, Entry] | None:
        """Return the file entry of every weight and persistent buffer of `model`, by its name in the model.

        Tied weights may be stored once or under each of their names. Older names are renamed by transformers' rules.
        None: the rules also join, split or transpose some weight, so the model must be loaded as a whole.

        Raises:
            BadModel: a weight is missing, has another shape or is not a float; or the checkpoint has more layers.
        """
        rules = get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        wanted = model.state_dict(keep_vars=True)
        found, extra, converted = dict[str, Entry](), list[str](), False
        for name in sorted(self.tensors, key=dot_natural_key):
            new, converter = rename_source_key(name, renamings, converters, model.base_model_prefix, wanted)
            if new not in wanted and name in wanted:
                new, converter = rename_source_key(name, [], [], model.base_model_prefix, wanted)
            if converter is not None and new in wanted:
                self._check_float(name, self.tensors[name])
                converted = True
            elif new in wanted:
                found[new] = self.tensors[name]
            else:
                extra.append(new)
        if converted:
            return None
        self._check(wanted, found, extra)
        return found

    def _check(self, wanted: Mapping[str, object], found: Mapping[str, Entry], extra: list[str]) -> None:
        there = {id(wanted[name]) for name in found}  # tied weights may be stored once
        missing = sorted(name for name, weight in wanted.items() if id(weight) not in there)
        if missing:
            raise BadModel(f"model '{self.folder}' lacks {len(missing)} weights, the first is {missing[0]}; {MEND}")
        for name, entry in found.items():
            weight = wanted[name]
            assert hasattr(weight, "shape") and hasattr(weight, "dtype")
            if entry.shape != tuple(weight.shape):
                raise BadModel(
                    f"model '{self.folder}' has {name} of {list(entry.shape)}, its config.json says "
                    f"{list(weight.shape)}; {MEND}"
                )
            if weight.dtype.is_floating_point:
                self._check_float(name, entry)
        layers = {re.sub(r"\d+", "#", name) for name in wanted}
        for name in extra:
            if re.sub(r"\d+", "#", name) in layers:
                raise BadModel(f"model '{self.folder}' has {name}, for which its config.json has no layer; {MEND}")

    def _check_float(self, name: str, entry: Entry) -> None:
        if entry.dtype not in FLOATS:
            raise BadModel(
                f"model '{self.folder}' stores {name} as {entry.dtype}: it is quantized; "
                f"take the checkpoint in {', '.join(FLOATS)} and export with --quantize"
            )


def _sharded(folder: Path) -> dict[str, Entry]:
    try:
        places = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].items()
        shards = {name: str(file) for name, file in places}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise BadModel(f"{folder / INDEX} has no 'weight_map'; {MEND}") from None
    found = dict[str, Entry]()
    for file in sorted(set(shards.values())):
        if Path(file).name != file or file in ("", ".", ".."):
            raise BadModel(f"{folder / INDEX} names '{file}', which leaves the folder; {MEND}")
        if not (folder / file).is_file():
            missing = sorted(f for f in set(shards.values()) if not (folder / f).is_file())
            raise BadModel(f"model '{folder}' lacks {len(missing)} of its files, the first is {file}; {MEND}")
        held = entries(folder / file)
        for name in (name for name, shard in shards.items() if shard == file):
            if name not in held:
                raise BadModel(f"{folder / file} lacks '{name}', which {INDEX} says is there; {MEND}")
            found[name] = held[name]
    return found
