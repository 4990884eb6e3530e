"""MLflow is away when a run starts, there for a while, and away when it ends: training does not notice."""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Tiny
from tests.ports import free_port
from tests.run.test_track import everything, server
from tests.test_resume import job_file

from trimtab import verbs
from trimtab.run.log import read_log
from trimtab.run.track_replay import STATE

pytestmark = [pytest.mark.chaos, pytest.mark.slow]


def test_a_server_that_comes_and_goes_misses_nothing_once_it_is_told(
    tiny: Tiny, tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, port = tmp_path / "storage", free_port()
    storage.mkdir()
    shutil.copy(empty_store, storage / "mlflow.db")
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
    up, trained = ExitStack(), []

    def meddle(event: dict[str, Any]) -> None:
        """After one training the server comes, hears what was, and is killed after the next."""
        if event["event"] != "stage_end" or not event["stage_id"].startswith("train-"):
            return
        trained.append(event)
        if len(trained) == 1:
            up.enter_context(server(storage, port))
            until = time.monotonic() + 300
            while not list((storage / "runs").glob(f"*/{STATE}")):
                assert time.monotonic() < until
                time.sleep(0.1)
        if len(trained) == 2:
            up.close()

    with up:
        done = verbs.run(
            job_file(tmp_path, tiny),
            [f"compute.storage={storage}", "compute.backend=inline"],
            listeners=[meddle],
        )
    assert "trimtab report --sync" in done.warnings[0]
    said = list(read_log(storage / "runs" / done.run_id))
    begun, ended = ({e["stage_id"] for e in said if e["event"] == name} for name in ("stage_start", "stage_end"))
    assert len(begun) == done.ran
    assert begun == ended
    assert (said[-1]["event"], said[-1]["status"], said[-1]["metrics"]) == ("run_end", "done", done.metrics)
    points = [e for e in said if e["event"] == "metrics" and e["stage_id"] == trained[-1]["stage_id"]]

    with server(storage, port):
        (told,) = verbs.sync(storage=storage)
        heard = everything(uri, "trimtab/job")
        (again,) = verbs.sync(storage=storage)
        assert (told.problem, again.problem, again.events) == (None, None, 0)
        (storage / "runs" / done.run_id / STATE).unlink()
        assert verbs.sync(storage=storage)[0].problem is None
        assert everything(uri, "trimtab/job") == heard
    assert {run["status"] for run in heard.values()} == {"FINISHED"}
    assert len(heard) == 1 + len(begun)
    (last,) = (run for run in heard.values() if run["tags"].get("trimtab.stage_id") == trained[-1]["stage_id"])
    assert [step for step, _, _ in last["points"]["loss"]] == [e["step"] for e in points if "loss" in e["values"]]
