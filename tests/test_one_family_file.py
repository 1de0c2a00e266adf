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

from torch import nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, VipLlavaForConditionalGeneration

from secateur.bundle.layout import Dimensions
from secateur.checkpoints import tiny_model
from secateur.checkpoints.tiny_model import PARTS, TinyTokenizer
from secateur.decoder import pieces
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
    tiny_tokenizer = TinyTokenizer("words", SPECIAL, TEMPLATE, bos="<s>", eos="</s>", pad="<pad>", unk="<unk>")

    @classmethod
    def tiny(cls, seed: int = 0) -> base.Family:
        size = {"height": 24, "width": 24}
        images = CLIPImageProcessorPil(size=size, crop_size=size)
        options = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
        processor = cls.tiny_processor(images, **options)
        return cls.from_config(
            processor,
            seed,
            vision_config=CLIPVisionConfig(**tiny_model.VISION, image_size=24, patch_size=4),
            text_config=LlamaConfig(**tiny_model.sizes(processor)),
            image_token_index=processor.image_token_id,
            vision_feature_layer=[-2, 1],
        )

    @property
    def bucket(self) -> base.Size:
        return self.vision_config.image_size, self.vision_config.image_size

    @property
    def grids(self) -> tuple[base.Size, ...]:
        side = self.vision_config.image_size // self.vision_config.patch_size
        return ((side, side),)

    def vision(self, reads: tuple[str, ...] = (), grid: base.Size | None = None) -> nn.Module:
        return VisionEncoder(self.model.model.vision_tower, self.model.config.vision_feature_layer, 1, reads)

    @property
    def dimensions(self) -> Dimensions:
        width = self.model.model.multi_modal_projector.linear_1.in_features
        return pieces.dimensions(self.model.config.text_config, width)
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
