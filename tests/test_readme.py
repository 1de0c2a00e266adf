# SPDX-License-Identifier: Apache-2.0
"""The commands of the README run in order, unchanged, in one shell, in a fresh copy of the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.table import README, replaced

ROOT = README.parent
TEXT = README.read_text(encoding="utf-8")
NOT_RUN = ("make test",)
"""Lines that would start this test again; `test_make_targets` checks them."""
COSTLY = ("demo-all", "prefill_speed", "tensorrt", "btp-78")


def steps() -> list[str]:
    """Return each line of the console blocks and each Python block, in the order of the README."""
    found: list[str] = []
    for kind, body in re.findall(r"^```(console|python)\n(.*?)^```", TEXT, re.S | re.M):
        found += body.splitlines() if kind == "console" else [f"python - <<'SNIPPET'\n{body}SNIPPET"]
    return [step for step in found if not step.startswith(NOT_RUN)]


STEPS = steps()
SLOW = [step for step in STEPS if any(word in step for word in COSTLY)]
QUICK = [step for step in STEPS if step not in SLOW]


def fresh_clone(folder: Path) -> Path:
    """Copy the project to `folder`, with a new .venv that shares the packages of this environment."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.splitlines()):
        if (ROOT / name).is_file() and not name.startswith(".venv"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    # installing needs minutes and a network, so the environment is prepared and make has nothing to install
    environment = folder / ".venv"
    venv.create(environment, with_pip=False)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text(f"{folder}\n{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    script = environment / "bin" / "secateur"
    lines = (f"#!{environment}/bin/python", "import sys", "from secateur.cli import main", "sys.exit(main())")
    script.write_text("\n".join(lines) + "\n", encoding="utf-8")
    script.chmod(0o755)
    (environment / ".installed").touch()
    return folder


def paste(steps: list[str], clone: Path) -> dict[str, tuple[int, str]]:
    """Run all steps in one shell; return the exit code and output of each step."""
    mark = "=== step"
    script = "".join(f"{step}\necho; echo '{mark}' $?\n" for step in steps)
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL")
    clean = {key: value for key, value in os.environ.items() if key not in hidden}
    # commands must be found through the README's own lines, not through the environment of the tests
    clean["PATH"] = os.pathsep.join(p for p in clean["PATH"].split(os.pathsep) if p != str(Path(sys.executable).parent))
    done = subprocess.run(
        ["bash"], input=script, cwd=clone, env=clean, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    parts = re.split(rf"{mark} (\d+)\n", done.stdout)
    return {step: (int(code), output) for step, output, code in zip(steps, parts[::2], parts[1::2], strict=False)}


@pytest.fixture(scope="module")
def pasted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    return paste(QUICK, fresh_clone(tmp_path_factory.mktemp("clone")))


def test_the_first_lines_install_the_project() -> None:
    assert STEPS[0].startswith("make demo") and STEPS[1] == ". .venv/bin/activate"
    assert QUICK and SLOW and any("SNIPPET" in step for step in QUICK)
    assert all(f"\n{line}" in TEXT for line in NOT_RUN)


@pytest.mark.parametrize("target", ["demo", "test", "quick"])
def test_make_targets(target: str) -> None:
    done = subprocess.run(["make", target, "-n"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("export.py --method btp" if target == "demo" else "pytest") in done.stdout


@pytest.mark.parametrize("step", QUICK)
def test_lines(step: str, pasted: dict[str, tuple[int, str]]) -> None:
    code, output = pasted[step]
    assert code == 0, output[-3000:]
    assert output.strip() or step == ". .venv/bin/activate"
    if "SNIPPET" in step:
        assert len(output.strip().splitlines()) == 3, output


@pytest.mark.slow
def test_all_lines(tmp_path: Path) -> None:
    done = paste(STEPS, fresh_clone(tmp_path))
    assert list(done) == STEPS
    for step, (code, output) in done.items():
        assert code == 0, f"{step}\n{output[-3000:]}"


def test_the_readme_is_short() -> None:
    assert len(TEXT.splitlines()) <= 120


def test_the_table_is_fresh() -> None:
    assert TEXT == replaced(TEXT), "run `make table`"


@pytest.mark.parametrize("page", sorted(p.relative_to(ROOT).as_posix() for p in [README, *ROOT.glob("docs/*.md")]))
def test_links_have_a_target(page: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8")):
        if "://" not in link:
            assert ((ROOT / page).parent / link).exists(), link
