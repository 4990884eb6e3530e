"""What each event of a run means to MLflow: the calls. `track.py` decides when they are made."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from trimtab.progress import TROUBLES
from trimtab.run.registering import register
from trimtab.run.track_calls import Calls, State
from trimtab.run.track_words import DIGEST, Event, flat, link, shortened

if TYPE_CHECKING:
    from mlflow import MlflowClient

JOB, PARENT = "job", "trimtab.parent"
SEARCH = "search"
"""The kind of a run that is a search; its trials are runs whose `parent` it is."""
GROWS = {"budget", "final", "smoke"}
"""Fields of a search file that a search that goes on may have changed; MLflow's parameters cannot change."""
SMALL_SUFFIXES = {".json", ".jsonl", ".md", ".txt", ".yaml", ".html", ".csv"}
SMALL_BYTES = 16 << 20


class Writer(Calls):
    """Makes the MLflow calls for a run's events; a repeated event changes nothing."""

    def __init__(self, client: MlflowClient, state: State, run_dir: Path, refused: list[str], made: list[str]) -> None:
        super().__init__(client, state, run_dir, refused)
        self.made = made

    def take(self, event: Event) -> None:
        """Act on one event; those that mean nothing to MLflow are ignored."""
        acts = {
            "run_start": self._run_start,
            "stage_start": self._stage_start,
            "metrics": self._metrics,
            "stage_end": self._stage_end,
            "register": self._register,
            "trial_end": self._trial_end,
            "report": self._report,
            "run_end": self._run_end,
        } | dict.fromkeys(TROUBLES, self._trouble)
        act = acts.get(event.get("event", ""))
        if act:
            act(event)

    def _run_start(self, event: Event) -> None:
        versions, before = event.get("versions") or {}, self.state.tags
        self.state.tags = before | {
            "trimtab.run_id": self.run_dir.name,
            "trimtab.commit": str(event.get("commit") or before.get("trimtab.commit", "unknown")),
            "trimtab.dirty": str(bool(event["dirty"])).lower()
            if "dirty" in event
            else before.get("trimtab.dirty", "false"),
            "trimtab.version": str(versions.get("trimtab") or before.get("trimtab.version", "unknown")),
        }
        tags = {"trimtab.kind": event.get("kind"), "trimtab.job": event.get("name"), "mlflow.source.name": "trimtab"}
        tags["mlflow.source.git.commit"] = event.get("commit")
        tags |= {f"trimtab.{a.replace(':/', '.')}": number for a, number in (event.get("models") or {}).items()}
        tags |= {f"trimtab.version.{name}": version for name, version in versions.items() if name != "trimtab"}
        if "parent" in event:
            self.state.tags |= {PARENT: event["parent"], "trimtab.trial": str(event["trial"])}
            tags["mlflow.parentRunId"] = self.state.parent
        if event.get("kind") == SEARCH:
            tags["trimtab.study"], tags["trimtab.truth_budget"] = self.run_dir.name, event["job"]["truth_budget"]
        label = f"trial {event['trial']}" if "parent" in event else self.run_dir.name
        self._open(JOB, event, label=label, tags=tags, params=flat(_asked(event)))

    def _stage_start(self, event: Event) -> None:
        stage_id = event["stage_id"]
        inputs: dict[str, str] = event.get("inputs") or {}
        tags = {
            "mlflow.parentRunId": self._run(JOB, event),
            "trimtab.stage_id": stage_id,
            "trimtab.stage": event.get("stage") or stage_id.rpartition("-")[0],
            "trimtab.key": event.get("key") or stage_id.rpartition("-")[2],
            "trimtab.stage_version": event.get("version"),
            "trimtab.cached": str(event.get("status") == "cached").lower(),
        }
        tags |= {f"trimtab.input.{name}": ref for name, ref in inputs.items()} | self._places(event)
        params = flat(event.get("spec") or {})
        run = self._open(stage_id, event, label=event.get("label") or stage_id, tags=tags, params=params)
        self._datasets(run, inputs, evaluated=tags["trimtab.stage"] == "evaluate")

    def _metrics(self, event: Event) -> None:
        stage_id = event.get("stage_id", JOB)
        run, step = self._run(stage_id, event), int(event.get("step", 0))
        if stage_id in self.state.open:
            self.state.open[stage_id] = step
        self._points(run, event.get("values") or {}, event, step=step)

    def _stage_end(self, event: Event) -> None:
        stage_id, status = event["stage_id"], event.get("status", "failed")
        if status == "cached" and PARENT in self.state.tags:
            self._tag(self._run(JOB, event), {f"trimtab.found.{event.get('label') or stage_id}": stage_id})
            return
        if status == "cached":
            self._stage_start(event)
        run, step = self._run(stage_id, event), self.state.open.get(stage_id, 0)
        seconds = {"seconds": event["seconds"]} if event.get("seconds") and status != "cached" else {}
        self._points(run, seconds | (event.get("metrics") or {}), event, step=step)
        places = self._places(event)
        if status != "cached":
            self._tag(run, places)
        trained = stage_id.startswith("train-") or "trimtab.model_path" in places
        if status == "done" and trained and places:
            self._trained(run, Path(places["trimtab.path"]))
        self._close(stage_id, status, event)

    def _trouble(self, event: Event) -> None:
        """A stage that goes on in spite of something: the last of it is a tag of its run."""
        self._tag(self._run(event["stage_id"], event), {f"trimtab.{event['event']}": event["text"]})

    def _register(self, event: Event) -> None:
        run, made = self._run(event["stage_id"], event), self._folder(event.get("path"))
        self._write(lambda: self.made.append(register(self.client, event, made=made, run=run, tags=self.state.tags)))

    def _run_end(self, event: Event) -> None:
        run, status = self._run(JOB, event), event.get("status", "failed")
        left_open = "failed" if status == "failed" else "interrupted"
        for stage_id in [name for name in self.state.open if name != JOB]:
            self._close(stage_id, left_open, event)
        self._tag(run, {"trimtab.status": status, "trimtab.error": event.get("error")})
        self._write(self.client.log_artifact, run, self.run_dir / "events.jsonl")
        self._report(event)
        self._close(JOB, status, event)

    def _trial_end(self, event: Event) -> None:
        """What a search says of a trial: its metrics, the trials being the steps."""
        self._points(self._run(JOB, event), event["metrics"], event, step=event["trial"])

    def _report(self, event: Event) -> None:
        """The report of a run; of a search all that its own folder holds, and what the report said."""
        run, report = self._run(JOB, event), self._folder(event.get("report"))
        self._points(run, event.get("metrics") or {}, event, step=0)
        searched = self.run_dir.parent.parent / "searches" / self.run_dir.name
        found = set(filter(_small, searched.iterdir())) if searched.is_dir() else set()
        for file in sorted(found | ({report} if report else set())):
            self._write(self.client.log_artifact, run, file)

    def _run(self, stage_id: str, event: Event) -> str:
        """MLflow's id of a run; one that the log never opened is opened now."""
        if stage_id not in self.state.runs:
            if stage_id == JOB:
                self._run_start({"time": event.get("time", 0)})
            else:
                self._stage_start({"time": event.get("time", 0), "stage_id": stage_id})
        return self.state.runs[stage_id]

    def _datasets(self, run: str, inputs: Mapping[str, str], *, evaluated: bool) -> None:
        """Inputs that are rows (made by prepare, reserve or split) as MLflow datasets: name, and key as digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        context = InputTag("mlflow.data.context", "evaluation" if evaluated else "training")
        found = [
            DatasetInput(
                Dataset(name, shortened(ref, DIGEST), "code", json.dumps({"tags": {"trimtab.artifact": ref}})),
                [context],
            )
            for name, ref in inputs.items()
            if ref.startswith(("prepare-", "reserve-", "split-"))
        ]
        if found:
            self._write(self.client.log_inputs, run, datasets=found)

    def _trained(self, run: str, folder: Path) -> None:
        """Log what describes a trained model; the weights too, if their place is a local folder or the user says so."""
        for file in sorted(folder.iterdir()):
            if _small(file):
                self._write(self.client.log_artifact, run, file)
        model = folder / "model"
        if not model.is_dir():
            return
        wish = os.environ.get("TRIMTAB_MLFLOW_MODELS")
        local = None if wish == "0" else self._local_artifacts(run)
        if local:
            self._write(shutil.copytree, model, local / "model", copy_function=link, dirs_exist_ok=True)
        elif wish == "1":
            self._write(self.client.log_artifacts, run, str(model), "model")
        else:
            for file in filter(Path.is_file, [model / "README.md", model / "config.json"]):
                self._write(self.client.log_artifact, run, file, "model")

    def _local_artifacts(self, run: str) -> Path | None:
        if self.client.tracking_uri.startswith("http"):
            return None
        place = urlsplit(self.client.get_run(run).info.artifact_uri)
        return Path(url2pathname(place.path)) if place.scheme in ("", "file") else None

    def _places(self, event: Event) -> dict[str, str]:
        """Tags that say where a stage's output and the model in it are."""
        folder = self._folder(event.get("path"))
        model = folder / "model" if folder else None
        tags = {"trimtab.path": folder, "trimtab.model_path": model if model and model.is_dir() else None}
        return {name: str(path) for name, path in tags.items() if path}

    def _folder(self, path: str | None) -> Path | None:
        """Where the log's path is now: as written, or the same name in this storage after a move."""
        if not path:
            return None
        name, storage = Path(path).name, self.run_dir.parent.parent
        own = storage / "searches" / self.run_dir.name / name
        places = (Path(path), storage / "artifacts" / name, self.run_dir / name, own)
        return next((place for place in places if place.exists()), None)


def _asked(event: Event) -> dict[str, Any]:
    """What makes a run what it is: of a trial its values, of a search its file, but what may grow, else the job."""
    if "parent" in event:
        return event["values"]
    told = event.get("job") or {}
    return {name: value for name, value in told.items() if event.get("kind") != SEARCH or name not in GROWS}


def _small(file: Path) -> bool:
    return file.suffix in SMALL_SUFFIXES and file.stat().st_size <= SMALL_BYTES
