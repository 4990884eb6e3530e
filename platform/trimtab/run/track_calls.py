"""The calls that a replay makes to MLflow: points and tags are gathered, runs opened and closed, refusals noted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.run.track_words import NAME, TAG, Event, clean, ms, shortened

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATUS = {"done": "FINISHED", "cached": "FINISHED", "failed": "FAILED", "interrupted": "KILLED", "pruned": "FINISHED"}
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"}


@dataclass
class State:
    """What mlflow.json holds; `offset` counts the bytes of the log that MLflow has whole.

    `parent` is MLflow's id of the run that this one is nested in, as a trial is in its search.
    """

    uri: str
    experiment: str = ""
    offset: int = 0
    runs: dict[str, str] = field(default_factory=dict)
    open: dict[str, int] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    parent: str | None = None


class Calls:
    """Writes to MLflow; a repeated call changes nothing."""

    def __init__(self, client: MlflowClient, state: State, run_dir: Path, refused: list[str]) -> None:
        self.client, self.state, self.run_dir, self.refused = client, state, run_dir, refused
        self.points: dict[str, list[Any]] = {}
        self.tags: dict[str, dict[str, str]] = {}

    def flush(self) -> None:
        """Send the points and tags that wait."""
        from mlflow.entities import RunTag

        for run in {**self.points, **self.tags}:
            tags = [RunTag(name, value) for name, value in self.tags.get(run, {}).items()]
            self._write(self.client.log_batch, run, metrics=self.points.get(run, []), tags=tags)
        self.points, self.tags = {}, {}

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

    def _tag(self, run: str, tags: Mapping[str, Any]) -> None:
        told = {clean(name): str(value)[:TAG] for name, value in tags.items() if value is not None}
        self.tags.setdefault(run, {}).update(told)

    def _points(self, run: str, values: Mapping[str, Any], event: Event, *, step: int) -> None:
        from mlflow.entities import Metric

        numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
        points = [Metric(clean(name), number, ms(event), step) for name, number in numbers.items()]
        self.points.setdefault(run, []).extend(points)

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
