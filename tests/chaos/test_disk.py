"""A disk that is too small, read-only, or full in the middle of a run: a file system of its own, held in memory."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Tiny
from tests.test_resume import finished, job_file, outcome

from trimtab import verbs
from trimtab.errors import ResourceError, StageError
from trimtab.run.log import EventLog, read_log

pytestmark = pytest.mark.chaos


class Disk:
    """A mounted file system of some MiB."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()

    def mount(self, *options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(self.place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    def fill(self) -> None:
        """Until not a byte is left."""
        with (self.place / "ballast").open("wb", buffering=0) as file:
            for size in (2**16, 1):
                try:
                    while file.write(b"x" * size) == size:
                        pass
                except OSError:
                    continue

    def make_room(self) -> None:
        (self.place / "ballast").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk.place)], capture_output=True, check=False)


def asked(storage: Path, **compute: Any) -> list[str]:
    fields = {"storage": storage, "backend": "inline"} | compute
    return [f"compute.{name}={value}" for name, value in fields.items()]


@pytest.mark.parametrize(
    ("options", "said"),
    [(("size=2m",), "too little disk: the plan needs"), (("size=64m", "ro"), "cannot be made .Read-only file system")],
    ids=["too small", "read-only"],
)
def test_what_can_be_known_before_is_refused_before(
    disk: Disk, tiny: Tiny, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    disk.mount(*options)
    with pytest.raises(ResourceError, match=said):
        verbs.run(job_file(tmp_path, tiny), asked(disk.place))
    assert list(disk.place.iterdir()) == []


def test_what_a_full_disk_does_not_take_of_a_log_is_there_once_there_is_room(disk: Disk) -> None:
    disk.mount("size=64k")
    with closing(EventLog(disk.place / "run")) as log:
        for number in range(200):
            if number == 3:
                disk.fill()
            log({"event": "note", "number": number, "text": "x" * 100})
        there = [event["number"] for event in read_log(log.folder)]
        assert there == list(range(len(there)))
        assert len(there) < 100
        disk.make_room()
        log({"event": "note", "number": 200})
    assert [event["number"] for event in read_log(log.folder)] == list(range(201))


def test_a_disk_that_fills_up_ends_the_run_and_once_there_is_room_it_goes_on(
    disk: Disk, tiny: Tiny, tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    disk.mount("size=64m")
    job = job_file(tmp_path, tiny)
    whole = verbs.run(job, asked(tmp_path / "whole"))
    heard = []

    def fill(event: dict[str, Any]) -> None:
        heard.append(event)
        trained = sum(e["event"] == "stage_end" and e["stage_id"].startswith("train-") for e in heard)
        if trained == 2 and event["event"] == "metrics" and event["step"] == 3:
            disk.fill()

    with pytest.raises(StageError, match="No space left on device"):
        verbs.run(job, asked(disk.place, checkpoint_steps=1), listeners=[fill])
    before = finished(disk.place)
    assert sum(name.startswith("train-") for name in before) == 2

    disk.make_room()
    notes = []
    found = verbs.run(job, asked(disk.place), listeners=[lambda e: notes.append(e.get("text", ""))])
    assert any(re.match("going on from step [23]:", note) for note in notes)
    assert {name: when for name, when in finished(disk.place).items() if name in before} == before
    assert (found.metrics, outcome(disk.place)) == (whole.metrics, outcome(tmp_path / "whole"))
