"""Runs that are given their id: what has the same id goes on with the same run, and nothing else may."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.errors import JobError
from trimtab.run.log import LOG, EventLog, first_event, read_log, troubles
from trimtab.run.naming import RUN_ID, alone, given_id, is_done, told_of

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
@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"kind": "search"}, "its kind is 'search', not 'reward'"),
        ({"name": "else"}, "its name is 'else', not 'job'"),
        ({"job": OWN["job"] | {"seeds": [1]}}, "its seeds differ"),
    ],
)
def test_an_id_of_another_job_s_run_is_refused(tmp_path: Path, other: dict, said: str) -> None:
    logged(tmp_path, {"event": "run_start"} | OWN | other)
    with pytest.raises(JobError, match=f"TRIMTAB_RUN_ID is one, but that is a run of another job: {said}"):
        given_id(tmp_path, OWN)


def test_a_run_that_is_alive_is_refused_and_one_that_was_killed_is_not(tmp_path: Path) -> None:
    folder = logged(tmp_path, {"event": "run_start", "owner": {"pid": 7, "host": "far"}})
    code = f"""
from pathlib import Path
from trimtab.run.naming import alone
with alone(Path({str(folder)!r})):
    print("held", flush=True)
    input()
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(JobError, match=r"run one is still going \(process 7 on far\)"), alone(folder):
        pass
    other.kill()
    other.communicate()
    with alone(folder):
        assert (folder / LOG).exists()


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
