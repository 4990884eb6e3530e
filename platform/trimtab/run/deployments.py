"""What is served, in MLflow: experiment `serving`, one run for every version of an ensemble, however often it starts.

    python -m trimtab.run.deployments < facts.json

A process of its own, so that a replica keeps neither MLflow's memory nor waits for its imports. It ends when its
standard input does.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.models.source import weights_hash
from trimtab.run.artifact import RECORD
from trimtab.run.registering import REGISTERED
from trimtab.run.registry import Registry
from trimtab.run.track_words import artifacts_of, connect, experiment_id, flat, one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "serving"
ENSEMBLE, VERSION = "trimtab.ensemble", "trimtab.ensemble_version"


def record(facts: dict[str, Any]) -> str:
    """The id of the run that stands for a version of an ensemble, made if there is none.

    `facts`: uri, storage, ensemble, version, config, and for each of `members` its source, folder, config, and where a
    registry has it `version`; one behind another server has no folder.
    """
    from mlflow.entities import Param

    client = connect(facts["uri"])
    experiment = experiment_id(client, EXPERIMENT, artifacts_of(facts["uri"]))
    found = _runs(client, experiment, facts)
    if found and found[0].info.status == "FINISHED":
        return found[0].info.run_id
    tags = {ENSEMBLE: facts["ensemble"], VERSION: facts["version"], "mlflow.source.name": "trimtab"}
    params = flat(facts["config"])
    registry = Registry(Path(facts["storage"]), facts["uri"])
    for name, member in facts["members"].items():
        folder = member["folder"] and Path(member["folder"])
        told = {"source": member["source"], "version": member["version"], "weights": folder and weights_hash(folder)}
        told = {key: value for key, value in told.items() if value}
        params |= flat(told | member["config"], f"members.{name}")
        tags |= {f"trimtab.member.{name}.{what}": text for what, text in _lineage(member, folder, registry).items()}
    called = f"{facts['ensemble']} {facts['version']}"
    run = found[0] if found else client.create_run(experiment, tags=tags, run_name=called)
    client.log_batch(run.info.run_id, params=[Param(name, text) for name, text in params.items()])
    client.set_terminated(run.info.run_id)
    first, *_ = _runs(client, experiment, facts)
    if first.info.run_id != run.info.run_id:  # another replica was as fast
        client.delete_run(run.info.run_id)
    return first.info.run_id


def _runs(client: MlflowClient, experiment: str, facts: dict[str, Any]) -> list[Run]:
    """Runs of this version, the first one first; one that is not finished was cut short."""
    same = f"tags.`{ENSEMBLE}` = '{facts['ensemble']}' and tags.`{VERSION}` = '{facts['version']}'"
    runs = client.search_runs([experiment], same)
    return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))


def _lineage(member: dict[str, Any], folder: Path | None, registry: Registry) -> dict[str, str]:
    """The stage that made a model, and the runs that it comes from, as far as the registry or its folder tells."""
    if member["version"]:
        version = registry.version(member["version"])
        told = {name.removeprefix("trimtab."): version.tags[name] for name in REGISTERED if name in version.tags}
        return told | ({"mlflow_run": version.run} if version.run else {})
    stage = folder and folder.parent / RECORD
    return {"stage_id": json.loads(stage.read_text())["stage_id"]} if stage and stage.is_file() else {}


def _leave_with_stdin() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> int:
    """Facts of a deployment, or of a debate, on the first line of standard input.

    The id of the run or trace comes out or, on standard error, one line of what went wrong.
    """
    os.nice(10)
    facts = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_stdin, daemon=True).start()
    from trimtab.run.transcripts import keep

    try:
        print(keep(facts) if "events" in facts else record(facts), flush=True)
    except Exception as error:  # noqa: BLE001  stores fail in many ways; the caller warns of each
        print(one_line(error), file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    os._exit(main())
