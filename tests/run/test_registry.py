"""Registered models: what a source means, what is said when it means nothing, and what keys make of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
from tests.registering import Store, two_arms

from trimtab.errors import JobError, ModelError
from trimtab.load import load_job
from trimtab.models.source import model_folder, split_source
from trimtab.parts import ModelSpec
from trimtab.run.artifact import PlanRunner
from trimtab.run.identity import identity
from trimtab.run.registry import Registry

JOB = """\
kind: guided
task: {{source: builtin:openings}}
base: {base}
guides: {{}}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Store]:
    with two_arms(tmp_path_factory.mktemp("registry"), empty_store) as store:
        yield store


def test_a_source_means_a_version_and_its_folder_where_it_is(store: Store) -> None:
    registry = Registry(store.storage)
    for source, number in (("@champion", 1), ("@latest", 2), ("/1", 1), ("/2", 2)):
        version = registry.version(f"models:/arm{source}")
        assert version.source == f"models:/arm/{number}"
        assert registry.folder(f"models:/arm{source}") == store.storage / f"artifacts/align-{number}/model"
        assert version.run == store.run
    assert version.tags["trimtab.stage_id"] == "align-2"
    assert not (store.storage / "cache").exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "models:/arn@champion",
            "no model 'arn' in the registry at .*; did you mean 'arm'.; there: arm; .*register: {",
        ),
        (
            "models:/arm@champ",
            "no alias 'champ' .*; did you mean 'champion'.; there: latest, champion; set it in MLflow",
        ),
        ("models:/arm/7", "'arm' has no version 7 in .*; there: 1, 2"),
        ("models:/arm", "names no version: write models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/arm/latest", "names no version"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(store: Store, source: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        Registry(store.storage).version(source)


def test_a_version_whose_files_are_gone(store: Store) -> None:
    store.client.create_registered_model("lost")
    store.client.create_model_version("lost", (store.storage / "gone").as_uri())
    with pytest.raises(ModelError, match=r"models:/lost/1.*no config.json in .*/gone"):
        Registry(store.storage).version("models:/lost@latest")


def test_no_registry_and_one_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ModelError, match=r"no registry yet at sqlite:.*trimtab run jobs/guides.yaml"):
        Registry(tmp_path).version("models:/arm/1")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ModelError, match="does not answer") as caught:
        Registry(tmp_path).version("models:/arm/1")
    assert "secret" not in str(caught.value)


class Artifacts(BaseHTTPRequestHandler):
    """A store of artifacts, as far as a download needs it."""

    files: ClassVar = {"config.json": b'{"num_hidden_layers": 1}', "model.safetensors": b"weights"}
    served: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if root := parse_qs(parts.query).get("path"):
            inside = root[0] == "m"
            found = [{"path": name, "is_dir": False, "file_size": len(text)} for name, text in self.files.items()]
            body = json.dumps({"files": found if inside else []}).encode()
        else:
            self.served.append(parts.path)
            body = self.files[parts.path.rpartition("/")[2]]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """Where a model is that is not on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Artifacts)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/api/2.0/mlflow-artifacts/artifacts/m"
    server.shutdown()
    server.server_close()


def test_what_is_elsewhere_is_downloaded_once_and_whole(
    store: Store, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.client.create_registered_model("far")
    store.client.create_model_version("far", elsewhere)
    registry = Registry(store.storage)
    planned = registry.version("models:/far/1").folder(registry.cache)
    assert not planned.exists()
    monkeypatch.setattr(Artifacts, "files", {"config.json": b"{}", "model.pkl": b"no"})
    with pytest.raises(ModelError, match="no .safetensors file"):
        registry.folder("models:/far/1")
    assert list(planned.parent.iterdir()) == []
    monkeypatch.undo()
    assert registry.folder("models:/far/1") == planned
    assert planned.name.startswith("far-1-")
    assert {path.name: path.read_bytes() for path in planned.iterdir()} == Artifacts.files
    served = len(Artifacts.served)
    assert Registry(store.storage).folder("models:/far@latest") == planned
    assert len(Artifacts.served) == served


def keys(job: Path, store: Store, *overrides: str) -> list[str]:
    found = load_job(job, [f"compute.storage={store.storage}", *overrides])
    plan = PlanRunner(found.compute)
    found.pipeline(plan)
    return sorted(plan.nodes)


def test_keys_follow_what_an_alias_points_at(store: Store, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB.format(base="{source: models:/arm@champion}"))
    first = keys(job, store)
    assert keys(job, store, "base=models:/arm/1") == first
    assert keys(job, store, f"base={store.storage}/artifacts/align-1/model") == first
    store.client.set_registered_model_alias("arm", "champion", "2")
    second = keys(job, store)
    store.client.set_registered_model_alias("arm", "champion", "1")
    assert second == keys(job, store, "base=models:/arm@latest")
    assert len(set(first) & set(second)) < len(first)
    assert keys(job, store) == first
    assert load_job(job, [f"compute.storage={store.storage}"]).versions == {"models:/arm@champion": "models:/arm/1"}


def test_mistakes_of_a_job_are_found_before_it_runs(store: Store, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB.format(base="{source: models:/arm@champion, layers: 9}"))
    with pytest.raises(JobError) as caught:
        load_job(job, [f"compute.storage={store.storage}", "helpers.h=models:/arn/1", "helpers.i.source=models:/arm/9"])
    said = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    assert "base.layers: the model has 3 layers" in said
    assert "helpers.h: no model 'arn'" in said
    assert "helpers.i.source: model 'arm' has no version 9" in said


def test_an_alias_that_nobody_looked_up_is_no_source_for_a_stage(tmp_path: Path) -> None:
    assert split_source("models:/arm@champion") == ("registry", "arm@champion")
    with pytest.raises(ModelError, match="put the folder in its place"):
        identity(ModelSpec(source="models:/arm@champion"))
    with pytest.raises(ModelError, match="put the folder in its place"):
        model_folder("models:/arm@champion", tmp_path)
