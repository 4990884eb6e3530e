"""What a job trains and registers: which training is meant, versions and aliases, and the way through the run's log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.registering import Store, made

from trimtab.compute import Compute
from trimtab.errors import JobError
from trimtab.load import PIPELINES, load_job
from trimtab.run.artifact import PlanRunner
from trimtab.run.log import EventLog
from trimtab.run.registering import telling, wanted
from trimtab.run.track import Replay

FILE = Path(__file__).parents[2] / "jobs" / "guides.yaml"


def problems(tmp_path: Path, *overrides: str) -> str:
    with pytest.raises(JobError) as caught:
        load_job(FILE, [f"compute.storage={tmp_path}", *overrides])
    return "\n".join(caught.value.problems)


def test_what_cannot_be_registered_is_a_mistake(tmp_path: Path) -> None:
    said = problems(tmp_path, "register={arn: smol, aligned: two words}")
    assert "register.arn: no training 'arn'; did you mean 'arm'?; there: arm, aligned" in said
    assert "register.aligned: 'two words' is no name for a registered model; write NAME, or NAME@ALIAS" in said
    assert "register.arm: 'a@v1' is no name" in problems(tmp_path, "register={arm: a@v1}")
    assert "register: should be a mapping" in problems(tmp_path, "register=[arm]")
    said = problems(tmp_path, "seeds=[0, 1]", "register={arm: smol}")
    assert "2 trainings have this name; take one of them: seed 0 / arm, seed 1 / arm" in said
    job = load_job(FILE, [f"compute.storage={tmp_path}", "seeds=[0, 1]", "register={seed 1 / arm: smol@candidate}"])
    assert job.register == {"seed 1 / arm": "smol@candidate"}


def test_the_last_of_several_rounds_is_meant(tmp_path: Path) -> None:
    job = load_job(FILE.with_name("weak_preferences.yaml"), [f"compute.storage={tmp_path}", "seeds=[0]", "rounds=2"])
    plan = PlanRunner(job.compute)
    job.pipeline(plan)
    (found,), _ = wanted({"ceiling": "best"}, plan.nodes.values())
    aligned = [node for node in plan.nodes.values() if node.label == "seed 0 / train ceiling"]
    assert len(aligned) == 2
    assert found.node is aligned[1]
    assert (found.name, found.alias) == ("best", "latest")


@pytest.fixture
def store(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Store(tmp_path, empty_store)


def test_the_same_weights_are_one_version(store: Store) -> None:
    first, other = made(store.storage, "align-1"), made(store.storage, "align-2", weights="x")
    again = made(store.storage, "align-3")
    assert store.register(first, "arm") == "models:/arm/1"
    assert store.register(again, "arm") == "models:/arm/1"
    assert store.register(other, "arm") == "models:/arm/2"
    assert store.register(other, "arm2") == "models:/arm2/1"
    version = store.client.get_model_version("arm", "1")
    assert (version.source, version.run_id) == ((first / "model").as_uri(), store.run)
    wanted = {"trimtab.stage_id": "align-1", "trimtab.objective": "arm", "trimtab.run_id": "run-1"}
    assert wanted.items() <= version.tags.items()
    assert store.client.get_registered_model("arm").aliases == {}
    (first / "model" / "config.json").unlink()
    assert store.register(again, "arm") == "models:/arm/3"
    with pytest.raises(FileNotFoundError, match="align-1 has no model folder that arm could be"):
        store.register(first, "arm")


def test_an_alias_moves_where_the_job_names_it_and_once(store: Store) -> None:
    first, other = made(store.storage, "align-1"), made(store.storage, "align-2", weights="x")
    aliases = lambda: {name: int(n) for name, n in store.client.get_registered_model("arm").aliases.items()}  # noqa: E731
    store.register(first, "arm", alias="candidate", time=10)
    assert aliases() == {"candidate": 1}
    store.register(other, "arm", alias="candidate", time=20)
    assert aliases() == {"candidate": 2}
    store.register(first, "arm", alias="candidate", time=10)
    assert aliases() == {"candidate": 2}
    store.client.set_registered_model_alias("arm", "candidate", "1")
    store.register(other, "arm", alias="candidate", time=20)
    assert aliases() == {"candidate": 1}


def planned(storage: Path) -> list[Any]:
    """The trainings of a job that registers one of them."""
    raw = {"task": {"source": "builtin:openings"}, "base": "builtin:smollm2-135m", "guides": {}}
    arm = {"model": {"source": "builtin:smollm2-135m", "layers": 4}, "objective": {"kind": "arm"}}
    plan = PlanRunner(Compute(storage=storage))
    PIPELINES["guided"].model_validate(raw | {"trained": {"arm": arm}})(plan)
    return wanted({"arm": "smol@candidate"}, plan.nodes.values())[0]


def test_a_run_s_log_says_what_to_register_and_its_replay_does(store: Store) -> None:
    (one,) = planned(store.storage)
    made(store.storage, one.node.artifact.id)
    log = EventLog(store.storage / "runs" / "r1")
    tell = telling(log, [one], "guides", "guided")
    tell({"event": "run_start", "run_id": "r1", "name": "guides", "models": {"models:/a@latest": "models:/a/2"}})
    for status in ("failed", "cached"):
        tell({"event": "stage_end", "status": status, "metrics": {}, "path": None} | one.node.describe())
    tell({"event": "run_end", "status": "done", "metrics": {}, "report": None})
    log.close()
    uri = f"sqlite:///{store.storage}/mlflow.db"
    for _ in range(2):
        replay = Replay(log.folder, uri)
        assert replay.step() == 5
        assert (replay.refused, replay.registered) == ([], ["models:/smol/1"])
        (log.folder / "mlflow.json").unlink()
    version = store.client.get_model_version_by_alias("smol", "candidate")
    told = {
        "trimtab.run_id": "r1",
        "trimtab.stage_id": one.node.artifact.id,
        "trimtab.job": "guides",
        "trimtab.kind": "guided",
        "trimtab.objective": "arm",
        "trimtab.base_model": "builtin:smollm2-135m",
        "trimtab.layers": "4",
    }
    assert told.items() <= version.tags.items()
    stage = store.client.get_run(version.run_id)
    assert stage.data.tags["trimtab.stage_id"] == one.node.artifact.id
    job = store.client.get_run(stage.data.tags["mlflow.parentRunId"])
    assert job.data.tags["trimtab.models.a_latest"] == "models:/a/2"


def test_a_training_without_a_model_folder_is_told_and_nothing_fails(store: Store) -> None:
    (one,) = planned(store.storage)
    log = EventLog(store.storage / "runs" / "r1")
    log({"event": "run_start", "run_id": "r1", "name": "guides"})
    log(one.event("guides", "guided"))
    log.close()
    replay = Replay(log.folder, store.uri)
    assert replay.step() == 2
    assert replay.registered == []
    assert "has no model folder that smol could be" in replay.refused[0]
