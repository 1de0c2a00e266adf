# SPDX-License-Identifier: Apache-2.0
"""The wheel contains the whole package, and works without the export packages."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parent.parent
BLOCKED = ("torch", "transformers", "onnx", "onnxscript", "safetensors", "polygraphy", "sklearn")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built without an index."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def unpacked(wheel: Path) -> Path:
    folder = wheel.parent / "site"
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_the_wheel_contains_only_the_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert all(top == "secateur" or top.endswith(".dist-info") for top in tops), tops
    tracked = subprocess.run(["git", "ls-files", "secateur"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    missing = {name for name in tracked if (ROOT / name).is_file()} - set(names)
    assert not missing
    assert "secateur/py.typed" in names and "secateur/demo/model/model.safetensors" in names


def run(site: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code with the unpacked wheel first on the path and the export packages blocked."""
    block = f"import sys; sys.path.insert(0, {str(site)!r}); sys.modules.update(dict.fromkeys({BLOCKED!r}))\n"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-c", block + code]
    return subprocess.run(command, cwd=site, capture_output=True, text=True, env=environment)


def test_the_wheel_works_without_the_export_packages(unpacked: Path) -> None:
    done = run(unpacked, "import secateur.runtime as r; print(r.__file__, r.Pipeline)")
    assert done.returncode == 0 and str(unpacked) in done.stdout, done.stderr
    done = run(unpacked, "from secateur.cli import main; main(['--help'])")
    assert done.returncode == 0 and "export" in done.stdout, done.stderr


def test_the_wheel_runs_a_bundle_without_the_export_packages(unpacked: Path, demo_bundle: tuple[Path, object]) -> None:
    image = unpacked / "secateur" / "demo" / "samples" / "scene_1.png"
    argv = ["run", str(demo_bundle[0]), "--image", str(image), "--prompt", "what color is the five ?"]
    done = run(unpacked, f"from secateur.cli import main; sys.exit(main({argv!r}))")
    assert done.returncode == 0 and "answer" in done.stdout, done.stderr
    done = run(unpacked, f"from secateur.cli import main; sys.exit(main({[*argv, '--backend', 'torch']!r}))")
    assert done.returncode == 2 and "pip install 'secateur[export]'" in done.stderr


def test_a_missing_export_package_is_a_one_line_error(unpacked: Path) -> None:
    done = run(unpacked, "from secateur.cli import main; sys.exit(main(['export']))")
    assert done.returncode == 2, done.stderr
    assert "pip install 'secateur[export]'" in done.stderr and "Traceback" not in done.stderr


def test_sources_have_a_license_line() -> None:
    for path in [*ROOT.glob("secateur/**/*.py"), *ROOT.glob("tests/**/*.py"), ROOT / "export.py"]:
        assert path.read_text(encoding="utf-8").startswith("# SPDX-License-Identifier: Apache-2.0\n"), path


def test_the_pinned_packages_install_on_the_oldest_python() -> None:
    """A pin without a marker is for Python 3.10, one with the marker for 3.11: the first release of each."""
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or '< "3.11"' in line:
            continue
        pin = Requirement(line)
        try:
            needed = SpecifierSet(metadata(pin.name)["Requires-Python"] or "")
        except PackageNotFoundError:  # a package of another platform
            continue
        assert needed.contains("3.11.0" if pin.marker else "3.10.0"), f"{line} needs Python {needed}"
