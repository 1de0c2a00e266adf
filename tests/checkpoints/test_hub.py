# SPDX-License-Identifier: Apache-2.0
"""Models by hub id: from a cache written by the test, and from a hub of one repository in this process."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from secateur.checkpoints import hub as hub_module
from secateur.checkpoints.hub import base_model, resolve, resolve_again
from secateur.demo import model_directory
from secateur.errors import BadModel
from secateur.families.base import Family
from secateur.load_model import load

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = f"org/name@{COMMIT}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a hub that cannot be reached."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    point_to("http://127.0.0.1:9", monkeypatch)
    yield folder
    close_session()


def point_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    close_session()
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def fill(cache: Path, model: Path, revision: str = "main") -> Path:
    """Write `model` to the cache as huggingface_hub does: links of a snapshot to blobs, and a file for the revision."""
    repository = cache / "models--org--name"
    snapshot, ref = repository / "snapshots" / COMMIT, repository / "refs" / revision
    for folder in (snapshot, ref.parent, repository / "blobs"):
        folder.mkdir(parents=True)
    ref.write_text(COMMIT)
    for file in model.iterdir():
        blob = repository / "blobs" / f"blob-of-{file.name}"
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    trees = repository / "trees"  # file lists of commits; without one every lookup of the commit waits for the network
    trees.mkdir()
    files = {file.name: {"size": file.stat().st_size, "blob_id": "b" * 40} for file in model.iterdir()}
    (trees / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": files}))
    return snapshot


@dataclass
class Served:
    """Responses of the hub: `files`, or for every request a status with the hub's error code and message."""

    files: dict[str, bytes] = field(default_factory=dict)
    status: int = 200
    code: str = ""
    message: str = ""
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            served.asked.append(path)
            status, body = served.status, b"{}"
            if path.startswith("/api/models/org/name/tree/"):
                tree = [{"type": "file", "path": n, "size": len(b), "oid": "b" * 40} for n, b in served.files.items()]
                body = json.dumps(tree).encode()
            elif path.startswith("/api/models/org/name/"):
                body = json.dumps({"id": "org/name", "sha": COMMIT, "tags": [], "siblings": []}).encode()
            elif status == 200:
                body = served.files[path.removeprefix(f"/org/name/resolve/{COMMIT}/")]
            self.send_response(status)
            headers = {"X-Error-Code": served.code, "X-Error-Message": served.message} if status != 200 else {}
            headers |= {
                "ETag": f'"{path.rpartition("/")[2]}"',
                "X-Repo-Commit": COMMIT,
                "Content-Length": str(len(body)),
            }
            for name, value in headers.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    point_to(f"http://127.0.0.1:{server.server_port}", monkeypatch)
    yield served
    close_session()
    server.shutdown()
    thread.join()
    server.server_close()


def refused(source: str, revision: str | None = None) -> str:
    with pytest.raises(BadModel) as problem:
        resolve(source, revision)
    assert "\n" not in str(problem.value)
    return str(problem.value)


def test_the_demo_and_folders_stay_where_they_are(tmp_path: Path) -> None:
    assert resolve("demo") == hub_module.Found(model_directory(), "demo")
    assert resolve(str(tmp_path)) == hub_module.Found(tmp_path, str(tmp_path))
    assert "has no revisions" in refused(str(tmp_path), "main") and "has no revisions" in refused("demo", "main")
    (tmp_path / "file").touch()
    assert "is a file; give the directory" in refused(str(tmp_path / "file"))


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_cached_models_need_no_network(
    cache: Path, monkeypatch: pytest.MonkeyPatch, offline: bool, revision: str | None
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    snapshot = fill(cache, model_directory())
    found = resolve("org/name", revision)
    assert found == hub_module.Found(snapshot, NAME)
    assert resolve(found.name) == found == resolve(found.name, COMMIT)


def test_a_cached_model_is_loaded_and_found_again(cache: Path, demo: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fill(cache, model_directory(), "refs/pr/1")
    loaded = load("org/name", revision="refs/pr/1")
    assert loaded.source == NAME and loaded.identity == demo.identity
    assert load(loaded.source).identity == demo.identity
    assert "is not, or not completely, in the cache" in refused("org/name")


def test_without_network_and_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot be reached ([Errno 111] Connection refused); download it where there is a" in refused("org/name")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = refused("org/name", "v1")
    assert said.startswith(
        f"model 'org/name', revision 'v1', is not, or not completely, in the cache {cache}, and the hub cannot be"
    )
    assert "(HF_HUB_OFFLINE is set)" in said
    assert "with `hf download org/name --revision v1 --local-dir DIR`, and give --model DIR" in said


INDEX = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})


def test_a_download_takes_neither_pickles_nor_code(hub: Served) -> None:
    wanted = {
        "config.json": b"{}",
        "model-00001-of-00002.safetensors": b"one",
        "model-00002-of-00002.safetensors": b"two",
        "model.safetensors.index.json": INDEX.encode(),
        "tokenizer.json": b"{}",
        "preprocessor_config.json": b"{}",
        "chat_template.jinja": b"chat",
    }
    unwanted = ("pytorch_model.bin", "modeling.py", "model.pt", "consolidated.safetensors", "onnx/model.onnx", "a.json")
    hub.files = wanted | dict.fromkeys((*unwanted, "original/config.json", "README.md"), b"no")
    found = resolve("org/name")
    assert found.name == NAME
    assert {file.name: file.read_bytes() for file in found.folder.iterdir()} == wanted
    asked = len(hub.asked)
    assert resolve(NAME) == found and len(hub.asked) == asked  # a commit does not change: no further request


def test_the_index_names_the_weights(hub: Served) -> None:
    """Repositories name their shards in many ways; a second copy of the weights is not downloaded."""
    shards = ("model.safetensors-00001-of-00002.safetensors", "part-b.safetensors")
    index = {"weight_map": {"a": shards[0], "b": shards[1], "c": "../escape.safetensors", "d": "pickle.bin"}}
    wanted = dict.fromkeys((*shards, "config.json", "spiece.model", "adapter_config.json"), b"one")
    wanted |= {
        "additional_chat_templates/tool.jinja": b"tool",
        "model.safetensors.index.json": json.dumps(index).encode(),
    }
    hub.files = wanted | dict.fromkeys(("model.safetensors", "consolidated.safetensors", "pickle.bin"), b"no")
    folder = resolve("org/name").folder
    assert {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()} == wanted


def test_an_incomplete_download(hub: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files = {"config.json": b"{}", "model.safetensors": b"weights"}
    (resolve("org/name").folder / "model.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "is not, or not completely, in the cache" in refused("org/name") and "not completely" in refused(NAME)


@pytest.mark.parametrize(
    ("status", "code", "message", "expected"),
    [
        (403, "GatedRepo", "", r"is gated; ask for access at http.*/org/name, then log in with `hf auth login`"),
        (401, "RepoNotFound", "", "is not on the hub, or it is private; check the spelling, or log in"),
        (404, "RevisionNotFound", "", "model 'org/name' has no revision 'v1'; leave out --revision"),
        (401, "", "Invalid credentials in Authorization header", r"does not accept your token \(401\); log in"),
        (403, "", "Forbidden", r"does not accept your token \(403\); log in"),
        (418, "", "", r"cannot be reached \(.*418"),
    ],
)
def test_errors_of_the_hub(hub: Served, status: int, code: str, message: str, expected: str) -> None:
    hub.status, hub.code, hub.message = status, code, message
    with pytest.raises(BadModel, match=expected) as problem:
        resolve("org/name", "v1")
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "does not fit on the disk of .*; make room there"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be written to the cache .*; set HF_HOME"),
        (RuntimeError("broken\npipe"), r"cannot be downloaded \(broken\); try again"),
    ],
)
def test_errors_of_the_disk(monkeypatch: pytest.MonkeyPatch, problem: Exception, expected: str) -> None:
    def fail(*_: object, **__: object) -> str:
        raise problem

    monkeypatch.setattr(hub_module, "snapshot_download", fail)
    with pytest.raises(BadModel, match=expected):
        resolve("org/name")


@pytest.mark.parametrize(
    "source",
    ["no-such-thing", "./nowhere", "/nowhere/at/all", "~/model", "a/b/c", "org/", "", "org/na me", "https://hub/a/b"],
)
def test_sources_that_are_not_models(source: str) -> None:
    assert "is neither a directory nor a hub id; use 'demo', a path, or organisation/name" in refused(source)


@pytest.mark.parametrize("source", ["a--b/c", "a/b.git", "a/b-", "a/" + "b" * 100])
def test_bad_hub_ids(source: str) -> None:
    assert f"model '{source}' cannot be a hub id" in refused(source)


@pytest.mark.parametrize("revision", ["", "../../etc", "a..b", "-x", "a b", "/main"])
def test_bad_revisions(revision: str) -> None:
    assert f"'{revision}' cannot be a revision" in refused("org/name", revision)
    assert f"'{revision}' cannot be a revision" in refused(f"org/name@{revision}")


def test_a_revision_is_given_once() -> None:
    assert "names a revision, and --revision says 'v2'; give one" in refused("org/name@v1", "v2")


def test_only_a_commit_makes_a_base_model() -> None:
    assert base_model(NAME) == "org/name"
    for name in ("demo", "org/name", "org/name@main", "/x/name@" + COMMIT, "@" + COMMIT):
        assert base_model(name) is None


def test_a_bundle_of_a_folder_is_never_asked_of_the_hub(
    hub: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """org/name may be a folder that is not here: only a name with a commit came from the hub."""
    hub.files = {"config.json": b"{}", "model.safetensors": b"weights"}
    for source in ("org/name", "./org/name", "/org/name", "org/name@main"):
        with pytest.raises(BadModel, match=f"from the folder '{source}', which is not here; .* with --model DIR"):
            resolve_again(source)
    assert not hub.asked
    assert resolve_again(NAME).name == NAME and hub.asked
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert resolve_again("org/name") == hub_module.Found(Path("org/name"), "org/name")
