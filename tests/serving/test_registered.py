"""Registered models in serve files: mistakes, what is bound for replicas, and the record of what is deployed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.registering import Store, made, two_arms

from trimtab.errors import JobError
from trimtab.run.deployments import record as record_here
from trimtab.serving.checks import mistakes
from trimtab.serving.config import GuidedArgs
from trimtab.serving.recorded import facts, record
from trimtab.serving.registered import Origin, bound, revision


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Store]:
    with two_arms(tmp_path_factory.mktemp("served"), empty_store) as store:
        yield store


def read(store: Store, arm: str = "models:/arm@champion", **more: Any) -> GuidedArgs:
    base = made(store.storage, "align-0") if not (store.storage / "artifacts/align-0").exists() else None
    base = (base or store.storage / "artifacts/align-0") / "model"
    duo = {"base": "base", "helpers": ["arm"], "guide": {"kind": "genarm", "alpha": 0.5}}
    models = {"base": str(base), "arm": {"source": arm, "template": "plain"}}
    return GuidedArgs.model_validate({"models": models, "ensembles": {"duo": duo}, "storage": store.storage} | more)


def test_mistakes_of_registered_members_are_listed_with_the_others(store: Store) -> None:
    assert list(mistakes(read(store))) == []
    other = read(store, "models:/arm@champ", ensembles={"duo": {"base": "base", "helpers": ["nobody", "arm"]}})
    (where, said), (place, unknown) = mistakes(other)
    assert where == ("models", "arm", "source")
    assert "no alias 'champ'" in said
    assert place == ("ensembles", "duo", "helpers", 0)
    assert "no model 'nobody'" in unknown


def test_replicas_are_given_folders_of_the_versions_that_aliases_mean_now(store: Store) -> None:
    args, origins = bound(read(store))
    assert args.models["arm"].source == f"{store.storage}/artifacts/align-1/model"
    assert args.models["arm"].template == "plain"
    assert args.models["base"] == read(store).models["base"]
    assert origins == {"arm": Origin("models:/arm@champion", "models:/arm/1")}
    assert revision(read(store, revision="mine")) == "mine arm=models:/arm/1"
    assert revision(read(store, "models:/arm@latest")) == "arm=models:/arm/2"
    with pytest.raises(JobError, match=r"models.arm.source: .*no version 9"):
        bound(read(store, "models:/arm/9"))


def deployments(store: Store) -> list[Any]:
    experiment = store.client.get_experiment_by_name("serving")
    return store.client.search_runs([experiment.experiment_id]) if experiment else []


@pytest.mark.slow
def test_a_version_of_an_ensemble_is_recorded_once(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    (store.storage / "artifacts/align-0/stage.json").write_text(json.dumps({"stage_id": "align-0"}))
    args, origins = bound(read(store))
    record(args, "duo", "v1", origins).join(300)
    assert caplog.records == []
    (run,) = deployments(store)
    assert record_here(facts(args, "duo", "v1", origins)) == run.info.run_id
    assert (run.info.run_name, run.info.status) == ("duo v1", "FINISHED")
    tags = {
        "trimtab.ensemble": "duo",
        "trimtab.ensemble_version": "v1",
        "trimtab.member.arm.stage_id": "align-1",
        "trimtab.member.arm.run_id": "run-1",
        "trimtab.member.arm.mlflow_run": store.run,
        "trimtab.member.base.stage_id": "align-0",
    }
    assert tags.items() <= run.data.tags.items()
    params = {
        "base": "base",
        "helpers": '["arm"]',
        "guide.kind": "genarm",
        "guide.alpha": "0.5",
        "members.arm.source": "models:/arm@champion",
        "members.arm.version": "models:/arm/1",
        "members.arm.weights": store.client.get_model_version("arm", "1").tags["trimtab.weights"],
        "members.arm.template": "plain",
        "members.base.source": args.models["base"].source,
    }
    assert params.items() <= run.data.params.items()
    assert "members.base.version" not in run.data.params
    store.client.set_terminated(run.info.run_id, "KILLED")
    assert record_here(facts(args, "duo", "v1", origins)) == run.info.run_id
    assert record_here(facts(args, "duo", "v2", origins)) != run.info.run_id
    assert len(deployments(store)) == 2


@pytest.mark.slow
def test_what_cannot_be_recorded_is_a_warning(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "no-such-store://x")
    args = read(store, "align-0")
    args = args.model_copy(update={"models": args.models | {"arm": args.models["base"]}})
    with caplog.at_level(logging.WARNING, "ray.serve"):
        record(args, "duo", "v3", {}).join(300)
    assert "duo v3 is not recorded in MLflow:" in caplog.text
