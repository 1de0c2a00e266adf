# SPDX-License-Identifier: Apache-2.0
"""Read a bundle, and check that every file exists, is unchanged since export, and is inside the folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from secateur.bundle.atomic import OwnFolder
from secateur.bundle.contract import check_graphs
from secateur.bundle.external_data import external_files
from secateur.bundle.manifest import SCHEMA, Manifest
from secateur.bundle.preprocess import Preprocess
from secateur.bundle.prompt import Prompt
from secateur.bundle.regular_file import Unreadable, open_regular, read_text
from secateur.bundle.schedule import Schedule
from secateur.bundle.strict_json import read_json
from secateur.errors import BadBundle, BadSchedule, UnknownName, printable

MANIFEST = "manifest.json"
REQUIRED = ("prompt.json", "tokenizer.json")
MEND = "export the bundle again"


Stamp = tuple[int, int, int, int]
"""Device, inode, size and time of modification (ns) of a file."""


@dataclass(frozen=True)
class Bundle:
    """A checked bundle in the folder `root` (absolute).

    steps       preprocessing of every image size
    checkpoint  folder of the model, for the backend that runs it; None: where the manifest says
    stamps      of graphs and weights, which stay open, by path
    """

    root: Path
    manifest: Manifest
    prompt: Prompt
    steps: tuple[Preprocess, ...]
    checkpoint: str | None = None
    stamps: Mapping[str, Stamp] = field(default_factory=dict, compare=False, repr=False)

    @property
    def preprocess(self) -> Preprocess:
        """The steps for the first image size."""
        return self.steps[0]

    @classmethod
    def load(cls, path: str | os.PathLike[str], verify: bool = True) -> Bundle:
        """Read and check the bundle in the folder `path`; `verify=False` skips the hashes.

        Raises:
            BadBundle: it is not a bundle, or is damaged or unsafe; names the file.
        """
        try:
            return cls._load(Path(path), verify)
        except OSError as problem:
            raise BadBundle(
                f"{path} cannot be read: {problem.strerror}; give the folder of a readable bundle"
            ) from None

    @classmethod
    def _load(cls, path: Path, verify: bool) -> Bundle:
        root = path.resolve()
        manifest = _manifest(root, path)
        needed = [*REQUIRED, *(g.file for g in manifest.graphs)]
        for bucket in manifest.buckets:
            needed += [bucket.layout.preprocess, *(s.file for s in bucket.schedules.values())]
        for name in needed:
            if name not in manifest.files:
                raise BadBundle(f"{root / MANIFEST} does not list the required file '{name}'; {MEND}")
        for data in (root / "onnx").rglob("*.data"):
            if data.relative_to(root).as_posix() not in manifest.files:
                raise BadBundle(f"{data} is not in the manifest, so its sha256 cannot be checked; {MEND}")
        found = {name: _check_file(root, name, digest if verify else None) for name, digest in manifest.files.items()}
        stamps = {str(root / name): stamp for name, stamp in found.items() if not name.endswith(".json")}
        for graph in manifest.graphs:
            _check_external(root, graph.file, manifest.files)
        for weight in manifest.weights:
            if weight.file not in manifest.files:
                raise BadBundle(f"{root / MANIFEST} does not list the weight file '{weight.file}'; {MEND}")
            if weight.offset + weight.nbytes > (root / weight.file).stat().st_size:
                raise BadBundle(f"{root / weight.file} is too short for the weight '{weight.name}'; {MEND}")
        try:
            check_graphs(manifest)
        except BadBundle as problem:
            raise BadBundle(f"{root / MANIFEST}: {printable(str(problem))}; {MEND}") from None
        for bucket in manifest.buckets:
            _check_schedules(root, bucket)
        prompt = read_json(Prompt, root / "prompt.json", BadBundle)
        _check_tokens(root, manifest, prompt)
        steps = tuple(_steps(root, bucket) for bucket in manifest.buckets)
        return cls(root, manifest, prompt, steps, stamps=stamps)

    def check_unchanged(self) -> None:
        """Compare inode, size and time of graphs and weights with those at loading; takes microseconds.

        Raises:
            BadBundle: a file was changed, replaced or removed: a process that maps it would mix old and new weights.
        """
        for path, stamp in self.stamps.items():
            try:
                same = _stamp(os.stat(path)) == stamp
            except OSError:
                same = False
            if not same:
                raise BadBundle(
                    f"{path} was changed, replaced or removed after it was loaded; load the bundle again, and replace "
                    "a bundle by renaming a new folder, never by writing into its files"
                )

    def path(self, name: str) -> Path:
        """Return the path of the file `name` of the manifest.

        Raises:
            BadBundle: the manifest has no such file.
        """
        if name not in self.manifest.files:
            raise BadBundle(f"{self.root} has no file '{name}' in its manifest; {MEND}")
        return self.root / name

    def schedule(self, name: str, image_size: str | None = None) -> Schedule:
        """Return the schedule `name` for an image size, WIDTHxHEIGHT; None: the first size.

        Raises:
            UnknownName: the bundle has no such schedule or image size.
        """
        buckets = {bucket.layout.size: bucket for bucket in self.manifest.buckets}
        size = self.manifest.layout.size if image_size is None else image_size
        if size not in buckets:
            raise UnknownName("image size", size, buckets)
        if name not in buckets[size].schedules:
            raise UnknownName("schedule", name, buckets[size].schedules)
        return read_json(Schedule, self.path(buckets[size].schedules[name].file), BadBundle)


def _check_tokens(root: Path, manifest: Manifest, prompt: Prompt) -> None:
    """Check that token ids are in the vocabulary; with others graphs would fail or read a wrong row."""
    most = manifest.dimensions.vocabulary
    if not prompt.stop:
        raise BadBundle(f"{root / 'prompt.json'} has no token that ends an answer; {MEND}")
    found = {MANIFEST: [token for bucket in manifest.buckets for token in bucket.layout.head]}
    found["prompt.json"] = [*prompt.stop, prompt.pad]
    for name, tokens in found.items():
        if beyond := [token for token in tokens if not 0 <= token < most]:
            raise BadBundle(f"{root / name} has the token {beyond[0]}, the model has 0 to {most - 1}; {MEND}")


def _steps(root: Path, manifest: Manifest) -> Preprocess:
    """Read the preprocessing steps for the first image size."""
    path = root / manifest.layout.preprocess
    steps = read_json(Preprocess, path, BadBundle)
    made, taken = steps.pixels, manifest.vision.inputs[0].shape[1:]
    if made is not None and made != taken:
        raise BadBundle(f"{path} makes images of {made}, vision takes {taken}; {MEND}")
    return steps


def _manifest(root: Path, given: Path) -> Manifest:
    if not root.exists():
        raise BadBundle(f"{given} does not exist; give the folder that `secateur export` wrote")
    if not (root / MANIFEST).is_file():
        raise BadBundle(f"{given} is not a bundle, it has no {MANIFEST}; give the folder that `secateur export` wrote")
    try:
        schema = json.loads(read_text(root / MANIFEST, encoding="utf-8-sig")).get("schema", SCHEMA)
    except Unreadable as problem:
        raise BadBundle(f"{root / MANIFEST} cannot be read: {problem}") from None
    except (OSError, ValueError, AttributeError, RecursionError):
        raise BadBundle(f"{root / MANIFEST} is not a JSON object, it may be truncated; {MEND}") from None
    if schema != SCHEMA:
        raise BadBundle(f"{root / MANIFEST} has schema {schema}, this version reads schema {SCHEMA}; {MEND}")
    return read_json(Manifest, root / MANIFEST, BadBundle)


def _check_external(root: Path, file: str, listed: Mapping[str, str]) -> None:
    """Check that a graph takes its weights from files of the manifest, whose hashes are checked."""
    try:
        unlisted = sorted(external_files(root / file, file) - listed.keys())
    except (OSError, ValueError) as problem:
        raise BadBundle(f"{root / file} is not an ONNX file ({problem}); {MEND}") from None
    if unlisted:
        raise BadBundle(f"{root / file} refers to the file {unlisted[0]!r:.300}, which is not in the manifest; {MEND}")


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _check_file(root: Path, name: str, digest: str | None) -> Stamp:
    """Check that a file is a regular file inside the bundle and, unless `digest` is None, has this sha256."""
    path = root / name
    try:
        inside = path.resolve().is_relative_to(root)
        if not inside:
            raise BadBundle(
                f"'{name}' is outside of the bundle {root}; {MEND}, or make a copy without links: hf download ORG/NAME "
                "--local-dir DIR"
            )
        if not path.exists():
            raise BadBundle(f"{path} is missing; {MEND}")
        if not path.is_file():
            raise BadBundle(f"{path} is not a regular file; {MEND}")
        with open_regular(path) as file:
            stamp = _stamp(os.fstat(file.fileno()))
            found = None if digest is None else _digest(file)
    except (OSError, RuntimeError, ValueError) as problem:
        if isinstance(problem, BadBundle):
            raise
        raise BadBundle(f"{path} cannot be read ({problem}); {MEND}") from None
    if digest is not None and found != digest.removeprefix("sha256:"):
        raise BadBundle(f"{path} is damaged or was changed: its sha256 differs from the manifest; {MEND}")
    return stamp


def is_bundle(folder: Path) -> bool:
    """Return whether a folder has a manifest that `secateur export` wrote; other files may be damaged."""
    try:
        if not (folder / MANIFEST).is_file():
            return False
        found = json.loads(read_text(folder / MANIFEST, encoding="utf-8-sig"))
        graphs, model = found["graphs"], found["model"]
        known = isinstance(found["schema"], int) and isinstance(model["fingerprint"], str)
        return known and bool(graphs) and all({"name", "kind", "file"} <= set(graph) for graph in graphs)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


ENGINES = "engines"
"""Subfolder of a bundle with the plans that `secateur build` writes."""
BUNDLE_FOLDER = OwnFolder("a bundle", is_bundle, keep=ENGINES)
"""Bundles may be replaced by `--force`; plans of unchanged graphs stay valid."""


def sha256(path: Path) -> str:
    """Return the hex digest of a regular file, which is read in pieces."""
    with open_regular(path) as file:
        return _digest(file)


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while piece := file.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def _check_schedules(root: Path, manifest: Manifest) -> None:
    for name, ref in manifest.schedules.items():
        try:
            schedule = read_json(Schedule, root / ref.file, BadSchedule)
        except BadSchedule as problem:
            raise BadBundle(f"{printable(str(problem))}; {MEND}") from None
        written = (schedule.name, schedule.positions, [(g.layer, g.keep, g.kind) for g in schedule.gates])
        if written != (name, ref.positions, [(g.layer, g.keep, g.kind) for g in ref.gates]):
            raise BadBundle(f"{root / ref.file} is not the schedule '{name}' of the manifest; {MEND}")
        if schedule.model != manifest.model:
            raise BadBundle(f"{root / ref.file} was made for another model; {MEND}")
