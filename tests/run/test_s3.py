"""A real S3 interface, spoken by a server of its own on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.run.test_remote import artifacts, chain, content

from trimtab import progress
from trimtab.errors import ResourceError
from trimtab.run import moving
from trimtab.run.remote import check_writable, fetched
from trimtab.run.store import store_of

pytest.importorskip("s3fs")
pytest.importorskip("moto")
pytestmark = pytest.mark.slow
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "SECRET", "AWS_DEFAULT_REGION": "us-east-1"}
SERVER = """
import time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
time.sleep(10**6)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    command = [sys.executable, "-c", SERVER]
    with (tmp_path_factory.mktemp("moto") / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=os.environ | KEYS, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    import s3fs

    for name, value in {**KEYS, "AWS_ENDPOINT_URL": server, "TRIMTAB_MIRROR": "unset"}.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{abs(hash(request.node.name))}"
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}/some/place"
    store_of.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


def test_what_one_mirror_has_made_another_finds(bucket: str, tmp_path: Path) -> None:
    run = chain(bucket, tmp_path / "a", length=4)
    check_writable(bucket)
    run.wait()
    other = chain(bucket, tmp_path / "b", length=4)
    assert other.pending == []
    for one, same in zip(artifacts(run), artifacts(other), strict=True):
        assert content(fetched(same)) == content(one.folder)


def test_a_mark_is_written_once_however_many_write_it(bucket: str) -> None:
    store = store_of(bucket)
    with ThreadPoolExecutor(8) as pool:
        stand = set(pool.map(lambda n: store.create("artifacts/x/whole.json", str(n).encode()), range(24)))
    assert stand == set(store.read(["artifacts/x/whole.json"]).values())
    assert len(stand) == 1


def test_files_are_listed_as_they_are_now(bucket: str) -> None:
    store = store_of(bucket)
    assert store.sizes("partial/x") == {}
    store.write("partial/x/step-1/a", b"12")
    assert store.sizes("partial/x") == {"step-1/a": 2}
    store.write("partial/x/b", b"1")
    store.remove("partial/x/step-1")
    assert store.sizes("partial/x") == {"b": 1}
    store.remove("partial/nothing")


def test_a_long_transfer_says_how_far_it_is(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "EVERY_S", 0)
    (tmp_path / "big").write_bytes(bytes(2**22))
    said: list[dict[str, Any]] = []
    with progress.listening(said.append):
        store_of(bucket).put({"big": tmp_path / "big"})
        store_of(bucket).get({"big": tmp_path / "again"})
    assert (tmp_path / "again").read_bytes() == bytes(2**22)
    notes = [event["text"] for event in said if event["event"] == "note"]
    for way in ("pushing to", "fetching from"):
        assert [note for note in notes if note.startswith(way)][-1] == f"{way} {bucket}: 4 MiB so far"


def test_a_bucket_that_is_not_there_is_said(bucket: str) -> None:
    with pytest.raises(
        ResourceError, match=r"s3://no-such-bucket/x: FileNotFoundError: .*check that the bucket"
    ) as told:
        check_writable("s3://no-such-bucket/x")
    assert "SECRET" not in str(told.value)


@pytest.mark.chaos
def test_a_server_that_does_not_answer_is_said(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    store_of.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ResourceError, match=r"EndpointConnectionError: .*can be reached from here"):
        check_writable(bucket)
