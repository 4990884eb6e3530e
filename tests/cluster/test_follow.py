"""Following a log over connections that break, through Ray's own client."""

from __future__ import annotations

import json

import pytest
from tests.cluster.scripted_dashboard import Dashboard, serving

from trimtab.cluster import follow as following
from trimtab.cluster.connection import Cluster
from trimtab.cluster.follow import Log, follow, parted
from trimtab.errors import ClusterError

EVENTS = [{"event": "progress", "stage_id": "a", "done": i, "text": 'é {"x": 1}'} for i in range(20)]
LINES = [
    "Running entrypoint",
    "",
    *(json.dumps(event) for event in EVENTS),
    'half a bar {"event": "done", "ran": 3}',
    "the end",
]
LOG = "\n".join(LINES)
JOB = "quickstart-0123abcd-1"


@pytest.fixture(autouse=True)
def _own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(following, "PAUSES_S", (0.01,) * 5)


def followed(dashboard: Dashboard) -> tuple[list[dict], list[str], list[str], following.Ending]:
    events, printed, lost = [], [], []
    with serving(dashboard):
        dashboard.jobs[JOB] = "RUNNING"
        ended = follow(Cluster(dashboard.url), JOB, Log(events.append, printed.append), lost=lost.append)
    return events, printed, lost, ended


@pytest.mark.parametrize(
    "breaks", [[], [0], [5, 5, 200], [1, 30, 31, 32, 900, 901], [len(LOG)], list(range(0, 900, 37))]
)
def test_no_line_is_lost_or_doubled_wherever_connections_break(breaks: list[int]) -> None:
    dashboard = Dashboard(LOG, list(breaks))
    events, printed, lost, ended = followed(dashboard)
    assert events == [*EVENTS, {"event": "done", "ran": 3}]
    assert printed == ["Running entrypoint", "", "half a bar ", "the end"]
    assert dashboard.connections == len(breaks) + 1
    assert bool(lost) == bool(breaks)
    assert (ended.code, ended.last) == (0, {"event": "done", "ran": 3})


def test_a_dead_line_is_not_waited_for_nor_taken_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    events, printed, lost = [], [], []

    def tell(why: str) -> None:
        """Only the first question has so little time."""
        lost.append(why)
        monkeypatch.setattr("trimtab.cluster.connection.ANSWERS_WITHIN_S", 30.0)

    monkeypatch.setattr(following, "QUIET_S", 1.0)
    with serving(Dashboard(LOG, [100, 700], silent=True, slow=1)) as dashboard:
        dashboard.jobs[JOB] = "RUNNING"
        cluster = Cluster(dashboard.url)
        monkeypatch.setattr("trimtab.cluster.connection.ANSWERS_WITHIN_S", 2.0)
        ended = follow(cluster, JOB, Log(events.append, printed.append), lost=tell)
    assert len(events) == len(EVENTS) + 1
    assert printed[-1] == "the end"
    assert "ReadTimeout" in lost[0]
    assert lost[-1] == "the job ended, its log did not"
    assert (ended.code, ended.last) == (0, {"event": "done", "ran": 3})


def test_the_log_of_a_job_that_says_little_is_not_sent_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "QUIET_S", 0.1)
    dashboard = Dashboard(LOG, rests=[0.5] * 30)
    events, _, lost, ended = followed(dashboard)
    assert (len(events), ended.code) == (len(EVENTS) + 1, 0)
    assert set(lost) <= {"the job ended, its log did not"}, "it may end just when the line is made anew"
    assert dashboard.connections < 15


def test_a_cluster_that_stumbles_is_asked_again() -> None:
    *_, lost, ended = followed(Dashboard(LOG, stumbles=1))
    assert len(lost) == 1
    assert "status code 500" in lost[0]
    assert (ended.code, ended.last) == (0, {"event": "done", "ran": 3})


@pytest.mark.slow
def test_patience_is_counted_from_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "QUIET_S", 1.0)
    with serving(Dashboard(LOG, [100], silent=True)) as dashboard:
        dashboard.jobs[JOB] = "RUNNING"
        cluster, printed = Cluster(dashboard.url), []
        monkeypatch.setattr("trimtab.cluster.connection.ANSWERS_WITHIN_S", 1.0)
        dashboard.slow = 1
        ended = follow(cluster, JOB, Log(print, printed.append), lost=print, patience=1.0)
    assert (ended.code, printed[-1]) == (0, "the end")


@pytest.mark.parametrize(
    ("status", "exit_code", "code"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", None, 1),
        ("FAILED", -9, 1),
        ("STOPPED", 143, 130),
    ],
)
def test_the_job_s_exit_code_is_ours(status: str, exit_code: int | None, code: int) -> None:
    *_, ended = followed(Dashboard("x", status=status, exit_code=exit_code))
    assert (ended.code, ended.message) == (code, "so it ended.")


def test_a_cluster_that_is_gone_is_given_up_and_an_unknown_job_at_once() -> None:
    with serving(Dashboard("x")) as dashboard:
        cluster = Cluster(dashboard.url)
        with pytest.raises(ClusterError, match="knows no job nothing-1"):
            follow(cluster, "nothing-1", Log(print, print), lost=print)
    lost = []
    with pytest.raises(ClusterError, match="has not answered .* may go on"):
        follow(cluster, JOB, Log(print, print), lost=lost.append, patience=0.1)
    assert len(lost) == 1


@pytest.mark.parametrize("line", ["", "{", '{"a": 1}', "{'event': 1}", '[{"event": 1}]', '{"event": "x"} after'])
def test_what_is_no_event_is_a_line(line: str) -> None:
    assert parted(line) == (line, None)
