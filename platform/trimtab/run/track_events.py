"""What each event of a run means to MLflow: the calls. `track.py` decides when they are made."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from trimtab.run.registering import register
from trimtab.run.track_words import DIGEST, NAME, TAG, Event, clean, flat, link, ms, shortened

if TYPE_CHECKING:
    from mlflow import MlflowClient

JOB = "job"
STATUS = {"done": "FINISHED", "cached": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"}
SMALL_SUFFIXES = {".json", ".jsonl", ".md", ".txt", ".yaml", ".html"}
SMALL_BYTES = 16 << 20


@dataclass
class State:
    """What mlflow.json holds; `offset` counts the bytes of the log that MLflow has whole."""

    uri: str
    experiment: str = ""
    offset: int = 0
    runs: dict[str, str] = field(default_factory=dict)
    open: dict[str, int] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class Writer:
    """Makes the MLflow calls for a run's events; a repeated event changes nothing."""

    def __init__(self, client: MlflowClient, state: State, run_dir: Path, refused: list[str], made: list[str]) -> None:
        self.client, self.state, self.run_dir, self.refused, self.made = client, state, run_dir, refused, made
        self.points: dict[str, list[Any]] = {}

    def take(self, event: Event) -> None:
        """Act on one event; those that mean nothing to MLflow are ignored."""
        acts = {
            "run_start": self._run_start,
            "stage_start": self._stage_start,
            "metrics": self._metrics,
            "stage_end": self._stage_end,
            "register": self._register,
            "run_end": self._run_end,
        }
        act = acts.get(event.get("event", ""))
        if act:
            act(event)

    def flush(self) -> None:
        """Send the points that wait."""
        for run, points in self.points.items():
            self._write(self.client.log_batch, run, metrics=points)
        self.points = {}

    def _run_start(self, event: Event) -> None:
        versions = event.get("versions") or {}
        self.state.tags = {
            "trimtab.run_id": self.run_dir.name,
            "trimtab.commit": str(event.get("commit") or "unknown"),
            "trimtab.dirty": str(bool(event.get("dirty"))).lower(),
            "trimtab.version": str(versions.get("trimtab", "unknown")),
        }
        tags = {"trimtab.kind": event.get("kind"), "trimtab.job": event.get("name"), "mlflow.source.name": "trimtab"}
        tags["mlflow.source.git.commit"] = event.get("commit")
        tags |= {f"trimtab.{a.replace(':/', '.')}": number for a, number in (event.get("models") or {}).items()}
        tags |= {f"trimtab.version.{name}": version for name, version in versions.items() if name != "trimtab"}
        self._open(JOB, event, label=self.run_dir.name, tags=tags, params=flat(event.get("job") or {}))

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

    def _register(self, event: Event) -> None:
        run, made = self._run(event["stage_id"], event), self._folder(event.get("path"))
        self._write(lambda: self.made.append(register(self.client, event, made=made, run=run, tags=self.state.tags)))

    def _run_end(self, event: Event) -> None:
        run, status = self._run(JOB, event), event.get("status", "failed")
        self._points(run, event.get("metrics") or {}, event, step=0)
        left_open = "failed" if status == "failed" else "interrupted"
        for stage_id in [name for name in self.state.open if name != JOB]:
            self._close(stage_id, left_open, event)
        report = self._folder(event.get("report"))
        for file in filter(None, [self.run_dir / "events.jsonl", report]):
            self._write(self.client.log_artifact, run, file)
        self._close(JOB, status, event)

    def _run(self, stage_id: str, event: Event) -> str:
        """MLflow's id of a run; one that the log never opened is opened now."""
        if stage_id not in self.state.runs:
            if stage_id == JOB:
                self._run_start({"time": event.get("time", 0)})
            else:
                self._stage_start({"time": event.get("time", 0), "stage_id": stage_id})
        return self.state.runs[stage_id]

    def _open(
        self, stage_id: str, event: Event, *, label: str, tags: Mapping[str, Any], params: Mapping[str, str]
    ) -> str:
        from mlflow.entities import Param

        known = {name: value for name, value in {**self.state.tags, **tags}.items() if value is not None}
        told = {clean(name): str(value)[:TAG] for name, value in known.items()}
        run = self.state.runs.get(stage_id)
        if run is None:
            made = self.client.create_run(
                self.state.experiment, start_time=ms(event), tags=told, run_name=shortened(label, NAME)
            )
            run = self.state.runs[stage_id] = made.info.run_id
        else:
            self._write(self.client.update_run, run, status="RUNNING")
            self._tag(run, told)
        self.state.open.setdefault(stage_id, 0)
        self._write(self.client.log_batch, run, params=[Param(name, text) for name, text in params.items()])
        return run

    def _close(self, stage_id: str, status: str, event: Event) -> None:
        self.flush()
        self._write(self.client.set_terminated, self.state.runs[stage_id], STATUS.get(status, "FAILED"), ms(event))
        self.state.open.pop(stage_id, None)

    def _tag(self, run: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._write(self.client.log_batch, run, tags=[RunTag(name, value[:TAG]) for name, value in tags.items()])

    def _points(self, run: str, values: Mapping[str, Any], event: Event, *, step: int) -> None:
        from mlflow.entities import Metric

        numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
        points = [Metric(clean(name), number, ms(event), step) for name, number in numbers.items()]
        self.points.setdefault(run, []).extend(points)

    def _datasets(self, run: str, inputs: Mapping[str, str], *, evaluated: bool) -> None:
        """Inputs that are rows (made by prepare or split) as MLflow datasets: the input's name, its key as digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        context = InputTag("mlflow.data.context", "evaluation" if evaluated else "training")
        found = [
            DatasetInput(
                Dataset(name, shortened(ref, DIGEST), "code", json.dumps({"tags": {"trimtab.artifact": ref}})),
                [context],
            )
            for name, ref in inputs.items()
            if ref.startswith(("prepare-", "split-"))
        ]
        if found:
            self._write(self.client.log_inputs, run, datasets=found)

    def _trained(self, run: str, folder: Path) -> None:
        """Log what describes a trained model; the weights too, if their place is a local folder or the user says so."""
        for file in sorted(folder.iterdir()):
            if file.suffix in SMALL_SUFFIXES and file.stat().st_size <= SMALL_BYTES:
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
        return next((p for p in (Path(path), storage / "artifacts" / name, self.run_dir / name) if p.exists()), None)

    def _write(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Make a call; what can never succeed (refused by the server, no right to write) is noted and skipped."""
        from mlflow.exceptions import MlflowException

        try:
            call(*args, **kwargs)
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            refusal = str(error)
        except (ImportError, PermissionError, FileNotFoundError) as error:
            refusal = f"{type(error).__name__}: {error}"
        else:
            return
        if refusal not in self.refused:
            self.refused.append(refusal)
