# SPDX-License-Identifier: Apache-2.0
"""Find the files of a model: the demo, a folder, or a repository of the Hugging Face hub in the local cache."""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is not typed
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from secateur.checkpoints.checkpoint import INDEX, SINGLE
from secateur.errors import BadModel, first_line

DEMO = "demo"
FILES = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    INDEX,
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "spiece.model",
)
"""Files to download before the weights: no pickles, no code, and no second copy of the weights in another format."""
ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(.*))?", re.ASCII)
REVISION = re.compile(r"\w[\w./-]*", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
PLAIN = re.compile(r"\w[\w.-]*\.safetensors", re.ASCII)
LOGIN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class Found:
    """The folder of a model, and the name that finds it again: "demo", a folder, or org/name@commit."""

    folder: Path
    name: str


def resolve(source: str, revision: str | None = None) -> Found:
    """Find the files of `source`: "demo", a folder, org/name, or org/name@revision; an existing folder has priority.

    Missing files of a repository are downloaded to the cache of huggingface_hub (HF_HOME). Without a network, or with
    HF_HUB_OFFLINE=1, only the cache is used. The returned name includes the commit.

    Raises:
        BadModel: there is no such model, revision or network, no access, or no room; the message says what to do.
    """
    if source == DEMO or os.path.exists(source):
        if revision is not None:
            raise BadModel(f"'{source}' has no revisions, only models on the hub have; leave out --revision {revision}")
        return _here(source)
    repository, own = split(source)
    if own is not None and revision not in (None, own):
        raise BadModel(f"model '{source}' names a revision, and --revision says '{revision}'; give one of them")
    revision = own if revision is None else revision
    if revision is not None and (not REVISION.fullmatch(revision) or ".." in revision):
        raise BadModel(f"'{revision}' cannot be a revision of '{repository}'; give a branch, a tag or a commit")
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))
        wanted = [*FILES, *weight_files(folder)]  # the first list again: with it, a snapshot is complete or refused
        folder = Path(snapshot_download(repository, revision=folder.name, allow_patterns=wanted))
    except (OSError, ValueError, RuntimeError, HTTPError) as problem:
        raise BadModel(_explain(problem, repository, revision)) from None
    return Found(folder, f"{repository}@{folder.name}")


def resolve_again(source: str) -> Found:
    """Find the model that a bundle was exported from. Only a name with its commit is asked of the hub.

    Raises:
        BadModel: the model is not there, or not the hub's.
    """
    if source == DEMO or base_model(source) or os.path.isdir(source):
        return resolve(source)
    raise BadModel(
        f"the bundle was exported from the folder '{source}', which is not here; give its checkpoint with --model DIR"
    )


def weight_files(folder: Path) -> list[str]:
    """Return the names of the files with the weights, as the index in `folder` says, else the usual name.

    Names that are not plain names of safetensors files are left out; reading the checkpoint refuses them.
    """
    try:
        places = json.loads((folder / INDEX).read_text(encoding="utf-8-sig"))["weight_map"].values()
    except FileNotFoundError:
        return [SINGLE]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    return sorted({str(name) for name in places if PLAIN.fullmatch(str(name))})


def split(source: str) -> tuple[str, str | None]:
    """Split "org/name@revision" into "org/name" and "revision".

    Raises:
        BadModel: `source` does not have this form.
    """
    found = ID.fullmatch(source)
    if found is None:
        raise BadModel(
            f"model '{source}' is neither a directory nor a hub id; use 'demo', a path, or organisation/name"
        )
    return found[1], found[2]


def base_model(source: str) -> str | None:
    """Return the hub id in the name of a `Found`; None if the model is not from the hub."""
    repository, at, commit = source.rpartition("@")
    return repository if at and ID.fullmatch(repository) and COMMIT.fullmatch(commit) else None


def _here(source: str) -> Found:
    if source == DEMO:
        from secateur.demo import model_directory

        return Found(model_directory(), source)
    if not Path(source).is_dir():
        raise BadModel(f"model '{source}' is a file; give the directory of the checkpoint, the one with config.json")
    return Found(Path(source), source)


def _explain(problem: Exception, repository: str, revision: str | None) -> str:
    """Return one line on why a repository cannot be downloaded."""
    model = f"model '{repository}'" + (f", revision '{revision}'," if revision else "")
    cause = problem.__cause__ if isinstance(problem, LocalEntryNotFoundError) else None
    answer = cause if isinstance(cause, HfHubHTTPError) else problem
    status = answer.response.status_code if isinstance(answer, HfHubHTTPError) else None
    if isinstance(answer, GatedRepoError):
        return f"{model} is gated; ask for access at {constants.ENDPOINT}/{repository}, then {LOGIN}"
    if isinstance(answer, RepositoryNotFoundError):
        return f"{model} is not on the hub, or it is private; check the spelling, or {LOGIN}"
    if isinstance(answer, RevisionNotFoundError):
        return f"model '{repository}' has no revision '{revision}'; leave out --revision for its main branch"
    if status in (401, 403):
        return f"{model} is refused by the hub, which does not accept your token ({status}); {LOGIN}"
    if isinstance(problem, HFValidationError):
        return f"model '{repository}' cannot be a hub id ({first_line(problem)}); use 'demo', a path, or org/name"
    if isinstance(problem, LocalEntryNotFoundError):
        offline = isinstance(cause, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set" if offline else first_line(cause or problem)
        at = f" --revision {revision}" if revision else ""
        return (
            f"{model} is not, or not completely, in the cache {constants.HF_HUB_CACHE}, and the hub cannot be reached "
            f"({reason}); download it where there is a network with `hf download {repository}{at} --local-dir DIR`, "
            "and give --model DIR"
        )
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{model} does not fit on the disk of {constants.HF_HUB_CACHE}; make room there, or set HF_HOME"
    if isinstance(problem, PermissionError):
        return f"{model} cannot be written to the cache {constants.HF_HUB_CACHE}; set HF_HOME to a folder of yours"
    return f"{model} cannot be downloaded ({first_line(problem)}); try again; files already downloaded are kept"
