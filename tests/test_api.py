# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import secateur
from secateur.api import at_sizes, make_method
from secateur.bundle.schedule_file import write_schedule
from secateur.cli import main
from secateur.demo import sample_directory
from secateur.errors import InputError
from secateur.families.base import Family
from tests.conftest import METHODS, method

HEAVY = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "safetensors", "numpy", "PIL", "rich")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light() -> None:
    assert run(f"import sys, secateur; print([name for name in {HEAVY!r} if name in sys.modules])").strip() == "[]"


def test_the_runtime_needs_no_export_packages() -> None:
    blocked = ("torch", "transformers", "onnx", "onnxscript", "safetensors")
    run(f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); from secateur import Pipeline, Chat, Bundle")


def test_every_public_name_exists() -> None:
    assert all(getattr(secateur, name) for name in secateur.__all__)
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        secateur.prune  # noqa: B018


def test_a_call_writes_what_the_commands_write(demo: Family, tmp_path: Path) -> None:
    options = ["--method", "btp", "--compression", "0.5", "--sample-count", "2", "--tau", "0.9"]
    assert main(["calibrate", *options, "--work", str(tmp_path), "--out", str(tmp_path / "command.json")]) == 0
    schedule = secateur.calibrate(demo, "btp", compression=0.5, sample_count=2, tau=0.9)
    write_schedule(schedule, tmp_path / "call.json")
    assert (tmp_path / "call.json").read_bytes() == (tmp_path / "command.json").read_bytes()
    exported = secateur.export_bundle("demo", [tmp_path / "call.json"], out=tmp_path / "bundle", check=False)
    assert set(exported.manifest.schedules) == {"full", schedule.name}
    with secateur.Pipeline.load(tmp_path / "bundle") as vlm:
        assert vlm.ask(sample_directory() / "scene_1.png", "what color is the seven ?", max_new_tokens=2).text


def test_several_compressions_share_a_measurement(tiny: Family) -> None:
    calibration = secateur.Calibration(methods=[make_method("fastv")], compressions=(0.5, 0.7), controls=1)
    made = calibration.run(tiny)
    assert len(made) == calibration.count == 4
    assert [schedule.method for schedule in made] == ["fastv", "fastv", "random", "random"]


def test_wrong_settings_are_refused(tiny: Family) -> None:
    with pytest.raises(InputError, match="has no option 'taw'; options: "):
        secateur.calibrate(tiny, "btp", taw=0.9)
    with pytest.raises(InputError, match="give one of them"):
        secateur.calibrate(tiny, "fastv", keep=(0.5,), compression=0.5)
    with pytest.raises(InputError, match="names a size twice"):
        at_sizes(tiny, [None, None])
    with pytest.raises(InputError, match="list of calibration samples is empty"):
        secateur.calibrate(tiny, "btp", samples=[])


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("btp", {"preset": "papr"}, "method 'btp': preset is 'papr', not one of released, paper"),
        ("btp", {"spatial": "xx"}, "spatial is 'xx', not one of manhattan, "),
        ("btp", {"final_drop": "no"}, "final_drop is 'no', not true or false"),
        ("btp", {"fills": 1.5}, "fills is 1.5, not an integer"),
        ("btp", {"tau": "x"}, "tau is 'x', not a finite number"),
        ("btp", {"attention": 0.3}, "attention is 0.3, not a list"),
        ("alvts", {"selectors": "xx"}, "selectors is 'xx', not one of "),
        ("alvts", {"loss": "xx"}, "loss is 'xx', not one of "),
        ("fastv", {"compression": "0.5"}, r"compressions\[0\] is '0.5', not a finite number"),
        ("fastv", {"keep": 0.5}, "keep is 0.5, not a list"),
        ("fastv", {"layers": 3}, "layers is 3, not a list"),
        ("fastv", {"samples": ["a"]}, "samples has 'a', which is not a Sample"),
    ],
)
def test_a_value_of_another_type_is_refused(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        secateur.calibrate("no model is loaded", method, **options)


def test_every_default_of_a_method_is_of_its_type() -> None:
    for name in METHODS:
        defaults: dict[str, Any] = {
            field.name: field.default for field in dataclasses.fields(method(name)) if field.name != "seed"
        }
        assert make_method(name, **defaults) == method(name)


def test_a_name_is_not_a_method(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="methods has 'btp', which is not a method"):
        secateur.Calibration(methods=["btp"])  # type: ignore[list-item]
    with pytest.raises(InputError, match="no model is given"):
        secateur.export_bundle([], [], out=tmp_path / "bundle")
