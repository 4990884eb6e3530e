"""Sending a job through Ray's own client: tokens, attempts, answers that get lost."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.cluster.scripted_dashboard import TOKEN, Dashboard, serving
from tests.cluster.test_submission import written

from trimtab.cluster.connection import Cluster, Lost
from trimtab.cluster.submission import Submission, prepared, read
from trimtab.cluster.verb import submit
from trimtab.errors import ClusterError
from trimtab.run.joining import settle_token


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Submission:
    monkeypatch.chdir(tmp_path)
    return prepared(read(written(tmp_path)))


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_attempts_are_counted_and_one_that_runs_is_not_sent_twice(sent: Submission) -> None:
    with serving(Dashboard("x")) as dashboard:
        cluster = Cluster(dashboard.url)
        first, again = submit(cluster, sent), submit(cluster, sent)
        assert (first.job, first.found) == (f"{sent.stem}-1", False)
        assert (again.job, again.found) == (f"{sent.stem}-1", True)
        dashboard.jobs |= {f"{sent.stem}-1": "FAILED", f"{sent.stem}-11": "STOPPED", "other-1": "RUNNING"}
        assert submit(cluster, sent).job == f"{sent.stem}-12"
    assert [said["submission_id"] for said in dashboard.received] == [f"{sent.stem}-1", f"{sent.stem}-12"]


def test_what_the_cluster_is_told_is_what_a_dry_run_says(sent: Submission) -> None:
    with serving(Dashboard("x")) as dashboard:
        job = submit(Cluster(dashboard.url), sent).job
    (said,) = dashboard.received
    assert said["entrypoint"] == sent.entrypoint
    assert said["metadata"] == sent.metadata
    assert said["runtime_env"]["env_vars"]["TRIMTAB_RUN_ID"] == job
    assert said["runtime_env"]["working_dir"].startswith("gcs://")
    assert len(said["runtime_env"]["py_modules"]) == 1


def test_a_request_whose_answer_got_lost_is_found_and_not_repeated(
    sent: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trimtab.cluster.verb.PAUSES_S", (0.01,))
    with serving(Dashboard("x", lose_answers=1)) as dashboard:
        done = submit(Cluster(dashboard.url), sent)
    assert (done.job, done.found) == (f"{sent.stem}-1", False)
    assert len(dashboard.received) == 1


@pytest.mark.parametrize(("given", "said"), [("wrong" * 8, "refuses the token"), ("", "asks for a token")])
def test_a_wrong_token_is_told_with_the_way_out(given: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ray.dashboard.modules.dashboard_sdk.get_auth_headers_if_auth_enabled",
        lambda headers: {"Authorization": f"Bearer {given}"} if given else {},
    )
    with serving(Dashboard("x", token=TOKEN)) as dashboard:
        with pytest.raises(ClusterError, match=f"{said}.*RAY_AUTH_TOKEN.*RAY_AUTH_TOKEN_PATH") as told:
            Cluster(dashboard.url)
    assert TOKEN not in str(told.value)


def test_the_address_given_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    with serving(Dashboard("x")) as dashboard:
        assert Cluster(dashboard.url).address == dashboard.url
        assert Cluster(dashboard.url).open


def test_no_address_and_no_answer_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError, match="which cluster"):
        Cluster(None)
    with pytest.raises(ClusterError, match="no cluster's dashboard answers at http://127.0.0.1:1 "):
        Cluster("127.0.0.1:1")


def test_a_head_that_is_still_coming_up_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.cluster.connection.PAUSE_S", 0.01)
    with serving(Dashboard("x", starting=3)) as dashboard:
        assert Cluster(dashboard.url).nodes() == [{"CPU": 2.0, "memory": 4.0 * 2**30}]
        assert dashboard.starting == -1
        cluster, dashboard.starting = Cluster(dashboard.url), 10**6
        clock = SimpleNamespace(monotonic=count(0, 10).__next__, sleep=lambda seconds: None)
        monkeypatch.setattr("trimtab.cluster.connection.time", clock)
        with pytest.raises(Lost, match="counts no node that is alive"):
            cluster.nodes()


def test_a_token_in_the_environment_or_the_home_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    import os

    settle_token()
    assert "RAY_AUTH_MODE" not in os.environ
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x" * 64)
    settle_token()
    assert os.environ["RAY_AUTH_MODE"] == "token"
