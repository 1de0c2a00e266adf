# SPDX-License-Identifier: Apache-2.0
"""A family is one file: the loader and the tests find it in a copy of the project with one more file."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOY = '''# SPDX-License-Identifier: Apache-2.0
"""ViP-LLaVA: features of several encoder layers and a projector with a norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from secateur.bundle.layout import Dimensions
from secateur.checkpoints import tiny_model
from secateur.checkpoints.tiny_model import PARTS, Form
from secateur.decoder import pieces
from secateur.decoder.pieces import Decoder
from secateur.families import base
from secateur.vision.encoder import VisionEncoder
from secateur.vision.preprocessing import one_view

SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<unk>")
TURN = "{% if m['role'] == 'assistant' %} bot {% else %} human {% endif %}" + PARTS.replace("IMAGE", "<image> ")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}" + TURN + "{% if m['role'] == 'assistant' %} {{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} bot{% endif %}"
)


class Family(base.Family):
    architecture = VipLlavaForConditionalGeneration
    image_processors = {"CLIPImageProcessor": one_view}
    form = Form("words", SPECIAL, TEMPLATE, bos="<s>", eos="</s>", pad="<pad>", unk="<unk>")

    @classmethod
    def tiny(cls, seed: int = 0) -> base.Family:
        size = {"height": 24, "width": 24}
        images = CLIPImageProcessorPil(size=size, crop_size=size)
        options = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
        processor: Any = tiny_model.processor("vipllava", cls.form, images, **options)
        vision = CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=24,
            patch_size=4,
        )
        config = VipLlavaConfig(
            vision_config=vision,
            text_config=LlamaConfig(**tiny_model.sizes(processor)),
            image_token_index=processor.image_token_id,
            vision_feature_layer=[-2, 1],
        )
        return cls(tiny_model.random_model(cls.architecture, config, seed), processor, "random")

    @property
    def bucket(self) -> base.Size:
        return self._tower.image_size, self._tower.image_size

    @property
    def grids(self) -> tuple[base.Size, ...]:
        side = self._tower.image_size // self._tower.patch_size
        return ((side, side),)

    @property
    def pixels(self) -> tuple[int, ...]:
        return (3, *self.bucket)

    def vision(self, reads: tuple[str, ...] = (), grid: base.Size | None = None) -> nn.Module:
        return VisionEncoder(self.model.model.vision_tower, self.model.config.vision_feature_layer, 1, reads)

    def projector(self) -> nn.Module:
        return self.model.model.multi_modal_projector

    @property
    def decoder(self) -> Decoder:
        return pieces.decoder(self.model.model.language_model, self.model.lm_head)

    @property
    def dimensions(self) -> Dimensions:
        width = self.model.model.multi_modal_projector.linear_1.in_features
        return pieces.dimensions(self.model.config.text_config, width)

    @property
    def patch_key_width(self) -> int:
        return self._tower.hidden_size // self._tower.num_attention_heads

    def inputs(self, input_ids: Tensor, pixel_values: NDArray[np.float32]) -> dict[str, Tensor]:
        return {"input_ids": input_ids, "pixel_values": torch.from_numpy(pixel_values)}

    @property
    def _tower(self) -> Any:
        return self.model.config.vision_config
'''
LOAD = """
from secateur.families.vipllava import Family
from secateur.load_model import check_usable, load
made = Family.tiny()
made.model.save_pretrained("checkpoint")
made.processor.save_pretrained("checkpoint")
family = load("checkpoint")
check_usable(family)
assert family.name == "vipllava" and type(family) is Family and family.fingerprint == made.fingerprint
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with one more file in `families`."""
    copy = tmp_path_factory.mktemp("one-family") / "project"
    for name in ("secateur", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "README.md", "export.py"):
        shutil.copy(ROOT / name, copy / name)
    (copy / "secateur/families/vipllava.py").write_text(TOY)
    return copy


def run(tree: Path, *command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_loader(tree: Path) -> None:
    run(tree, "-c", LOAD)


@pytest.mark.slow
def test_against_transformers(tree: Path) -> None:
    """The discovered tests of families: `generate`, a pruned and masked run, follow-up questions and a batch."""
    chosen = "vipllava and not two"
    shown = run(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "-k", chosen, "tests/test_families.py")
    summary = shown.strip().splitlines()[-1]
    assert int(summary.split(" passed")[0].split()[-1]) >= 6 and "failed" not in summary, shown
