"""Runs that are given their id: the same job with the same id goes on with the same run, and nothing else may."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from trimtab.errors import JobError
from trimtab.run.lease import if_free
from trimtab.run.log import (
    LOCK,
    LOG,
    EventLog,
    first_event,
    has_ended,
    owner,
    read_log,
    settle_runs,
    settling,
    troubles,
)
from trimtab.run.naming import RUN_ID, USABLE, alone, given_id, is_done, renamed, told_of

OWN = {"name": "job", "kind": "reward", "job": {"kind": "reward", "seeds": [0], "beta": float("inf")}}


def logged(storage: Path, *events: dict, run: str = "one") -> Path:
    log = EventLog(storage / "runs" / run)
    for event in events:
        log(event)
    log.close()
    return log.folder


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_ID, "one")


def test_without_an_id_nothing_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(RUN_ID, raising=False)
    assert given_id(tmp_path, OWN) is None
    assert is_done(tmp_path, None)


@pytest.mark.parametrize("run_id", ["../one", "a/b", ".one", "a b", "x" * 129])
def test_what_cannot_be_a_folder_s_name_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_id: str
) -> None:
    monkeypatch.setenv(RUN_ID, run_id)
    with pytest.raises(JobError, match="use at most 128 letters"):
        given_id(tmp_path, OWN)


@pytest.mark.usefixtures("named")
def test_an_id_is_that_of_a_new_run_or_of_one_of_the_same_job(tmp_path: Path) -> None:
    assert given_id(tmp_path, OWN) == "one"
    assert not is_done(tmp_path, "one")
    logged(tmp_path, {"event": "run_start", "run_id": "one"} | OWN)
    assert given_id(tmp_path, OWN) == "one"
    assert not is_done(tmp_path, "one")
    logged(tmp_path, {"event": "run_end", "status": "failed"})
    assert not is_done(tmp_path, "one")
    logged(tmp_path, {"event": "run_start"} | OWN, {"event": "run_end", "status": "done"})
    assert is_done(tmp_path, "one")


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("other", [{"kind": "search"}, {"name": "else"}, {"job": OWN["job"] | {"seeds": [1]}}])
def test_a_job_that_was_changed_is_a_run_of_its_own(tmp_path: Path, other: dict) -> None:
    logged(tmp_path, {"event": "run_start"} | OWN)
    changed = given_id(tmp_path, OWN | other)
    assert re.fullmatch(r"one-[0-9a-f]{8}", changed)
    logged(tmp_path, {"event": "run_start"} | OWN | other, run=changed)
    assert given_id(tmp_path, OWN | other) == changed, "begun anew it goes on with the same run"
    assert given_id(tmp_path, OWN) == "one"
    assert changed != given_id(tmp_path, OWN | other | {"job": {}})
    assert renamed("one") == []
    (said,) = renamed(changed)
    assert "TRIMTAB_RUN_ID is one" in said and said.endswith(f"this run is {changed}")


def test_the_id_of_a_changed_job_is_usable_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(RUN_ID, "x" * 128)
    logged(tmp_path, {"event": "run_start"} | OWN, run="x" * 128)
    assert USABLE.fullmatch(given_id(tmp_path, OWN | {"name": "else"}))


@contextmanager
def elsewhere(folder: Path) -> Iterator[int]:
    """Another process is at a run; it is killed at the end."""
    code = f"""
from pathlib import Path
from trimtab.run.naming import alone
with alone(Path({str(folder)!r})):
    print("held", flush=True)
    input()
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    try:
        yield other.pid
    finally:
        other.kill()
        other.communicate()


def test_a_run_that_is_alive_is_refused_and_one_that_was_killed_is_not(tmp_path: Path) -> None:
    folder = logged(tmp_path, {"event": "run_start", "owner": {"pid": 7, "host": "far"}})
    refused = pytest.raises(JobError, match=r"run one is still going \(process 7 on far\)")
    with elsewhere(folder), refused, alone(folder):
        pass
    with alone(folder):
        assert (folder / LOG).exists()


def test_a_run_that_holds_its_lock_is_alive_whatever_clocks_say(tmp_path: Path) -> None:
    with elsewhere(tmp_path / "runs" / "one") as pid:
        who = owner() | {"pid": pid, "born": owner()["born"] - 1000}
        folder = logged(tmp_path, {"event": "run_start", "owner": who})
        (aside := tmp_path / "artifacts" / f".train-0123.{who['host']}-{pid}-0123abcd").mkdir(parents=True)
        assert settle_runs(tmp_path) == []
        assert aside.exists() and not has_ended(folder)
    assert settle_runs(tmp_path) == ["one"]
    assert not aside.exists()


def test_who_settles_a_run_is_waited_for_and_not_taken_for_the_run(tmp_path: Path) -> None:
    folder = logged(tmp_path, {"event": "run_start"})

    def begun() -> bool:
        with alone(folder):
            return True

    with ThreadPoolExecutor(1) as pool:
        with settling(tmp_path), if_free(folder / LOCK) as free:
            beginning = pool.submit(begun)
            assert free and not wait([beginning], timeout=0.3).done
        assert beginning.result()


def test_of_many_that_settle_a_run_one_does(tmp_path: Path) -> None:
    left, over = {"event": "run_start", "owner": owner() | {"born": 0}}, threading.Event()
    folder = logged(tmp_path, left)

    def settle() -> int:
        settled = 0
        while not over.is_set():
            settled += len(settle_runs(tmp_path))
        return settled

    with ThreadPoolExecutor(3) as pool:
        settlers = [pool.submit(settle) for _ in range(3)]
        try:
            for _ in range(50):
                with alone(folder):
                    logged(tmp_path, left)
                    settle_runs(tmp_path)
                    assert not has_ended(folder)
        finally:
            over.set()
    settled = sum(settler.result() for settler in settlers) + len(settle_runs(tmp_path))
    events = [event["event"] for event in read_log(folder)]
    assert events.count("run_end") == settled
    assert ("run_end", "run_end") not in pairwise(events)


def test_a_line_that_was_cut_short_stays_apart_from_what_follows(tmp_path: Path) -> None:
    folder = logged(tmp_path, {"event": "run_start"})
    with (folder / LOG).open("a") as log:
        log.write('{"event": "stage_')
    logged(tmp_path, {"event": "run_start", "again": True})
    assert [event["event"] for event in read_log(folder)] == ["run_start", "run_start"]
    assert first_event(folder)["event"] == "run_start"


def test_a_stage_is_told_of_once_it_and_its_model_s_registration_are(tmp_path: Path) -> None:
    ends = [
        {"event": "stage_end", "stage_id": f"s{i}", "status": s} for i, s in enumerate(("done", "cached", "failed"))
    ]
    folder = logged(tmp_path, *ends)
    assert told_of(folder, set()) == {"s0", "s1"}
    assert told_of(folder, {"s0", "s2"}) == {"s1"}
    logged(tmp_path, {"event": "register", "stage_id": "s0"})
    assert told_of(folder, {"s0", "s2"}) == {"s0", "s1"}


def test_what_befell_stages_that_went_on_is_told_of_the_last_driver_s_time(tmp_path: Path) -> None:
    trouble = {"event": "worker_died", "stage_id": "s0", "text": "rank 1 died: killed"}
    folder = logged(tmp_path, {"event": "run_start"}, trouble)
    assert troubles(folder) == ["s0: rank 1 died: killed"]
    logged(tmp_path, {"event": "run_start"}, trouble | {"event": "stage_retry", "text": "again with 4"})
    assert troubles(folder) == ["s0: again with 4"]
