"""One run's event log repeated to MLflow, and that of a search with all its trials."""

from __future__ import annotations

import glob
import json
import os
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from trimtab.run.log import LOG, first_event
from trimtab.run.track_calls import State
from trimtab.run.track_events import JOB, SEARCH, Writer
from trimtab.run.track_words import Event, artifacts_of, connect, experiment_id, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATE = "mlflow.json"
CHUNK = 1 << 20


class Replay:
    """Brings MLflow up to date with one run's event log."""

    def __init__(self, run_dir: Path, uri: str, *, client: MlflowClient | None = None) -> None:
        self.run_dir, self.uri = Path(run_dir).resolve(), uri
        self.refused: list[str] = []
        self.registered: list[str] = []
        self._client = client
        self._written: State | None = None

    @property
    def log(self) -> Path:
        return self.run_dir / LOG

    def step(self) -> int:
        """Repeat what is new in the log to MLflow; the number of lines taken.

        A half-written last line waits for the next call. What the server refuses for good (a run deleted there, a
        parameter changed) is skipped and kept in `refused`. Raises whatever the store raises when it cannot be
        reached: nothing is marked as done then, and the next call goes on from the last whole chunk.
        """
        if not self.log.exists():
            return 0
        with FileLock(self.run_dir / "mlflow.lock"):
            state = self._load()
            if state == self._written and not self._read(state.offset):
                return 0
            try:
                return self._take(state)
            except BaseException:
                self._written = None
                raise

    def _take(self, state: State) -> int:
        first = self._read(0, size=1)
        if not first:
            return 0
        client = self._client = self._client or connect(self.uri)
        if state != self._written:
            state = self._find_again(client, state, self._parse(first[0]))
        writer = Writer(client, state, self.run_dir, self.refused, self.registered)
        taken = 0
        while lines := self._read(state.offset):
            for line in lines:
                writer.take(self._parse(line))
            writer.flush()
            state.offset += sum(map(len, lines))
            taken += len(lines)
            self._save(state)
        if self._written is None:
            self._save(state)
        return taken

    def _find_again(self, client: MlflowClient, state: State, first: Event) -> State:
        """Take over the runs that the server has of this job; start from nothing if it has not the job's."""
        own = self.run_dir.name
        found = self._search(client, state.experiment, own) if state.experiment else {}
        if JOB not in found:
            experiment = experiment_id(client, self._name(first), artifacts_of(self.uri))
            state = State(without_password(self.uri), experiment)
            found = self._search(client, state.experiment, own)
        if first.get("parent") and state.parent is None:
            state.parent = self._parent(client, state.experiment, first["parent"])
        state.runs = found
        return state

    def _parent(self, client: MlflowClient, experiment: str, run_id: str) -> str | None:
        """MLflow's id of the run that this one is nested in, replayed first; None where nothing is left of it."""
        found = self._search(client, experiment, run_id)
        if JOB not in found and (self.run_dir.parent / run_id / LOG).exists():
            Replay(self.run_dir.parent / run_id, self.uri, client=client).step()
            found = self._search(client, experiment, run_id)
        return found.get(JOB)

    def _search(self, client: MlflowClient, experiment: str, run_id: str) -> dict[str, str]:
        from mlflow.entities import ViewType

        runs, token = [], None
        while token is None or token:
            page = client.search_runs(
                [experiment], f"tags.`trimtab.run_id` = '{run_id}'", ViewType.ALL, page_token=token
            )
            runs += page
            token = page.token or ""
        return {run.data.tags.get("trimtab.stage_id", JOB): run.info.run_id for run in runs}

    def _name(self, first: Event) -> str:
        """The experiment: the job's; of searches and their trials, which are one experiment, the search's."""
        if given := os.environ.get("MLFLOW_EXPERIMENT_NAME"):
            return given
        above = self.run_dir.parent / first.get("parent", "")
        if "parent" in first and (above / LOG).exists():
            first = first_event(above)
        searched = "parent" in first or first.get("kind") == SEARCH
        return f"trimtab/{'tune/' * searched}{first.get('name') or self.run_dir.name}"

    def _parse(self, line: bytes) -> Event:
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            self.refused.append(f"{self.log}: a line that is not a JSON object was skipped: {line[:40]!r}")
            return {}
        return event

    def _read(self, offset: int, size: int = CHUNK) -> list[bytes]:
        """Whole lines from `offset` on, about `size` bytes of them."""
        lines, taken = [], 0
        with self.log.open("rb") as log:
            log.seek(offset)
            while taken < size and (line := log.readline()).endswith(b"\n"):
                lines.append(line)
                taken += len(line)
        return lines

    def _load(self) -> State:
        fresh = State(without_password(self.uri))
        try:
            state = State(**json.loads((self.run_dir / STATE).read_text()))
        except (OSError, ValueError, TypeError):
            return fresh
        whole = state.offset <= self.log.stat().st_size
        return state if whole and state.uri == fresh.uri else fresh

    def _save(self, state: State) -> None:
        aside = self.run_dir / f"{STATE}.tmp"
        aside.write_text(json.dumps(asdict(state), indent=1))
        aside.replace(self.run_dir / STATE)
        self._written = deepcopy(state)


class SearchReplay:
    """Brings MLflow up to date with a search and, through the same connection, with every trial that it has by then.

    A log that has not grown is not opened again.
    """

    def __init__(self, run_dir: Path, uri: str) -> None:
        self.run_dir, self.uri = Path(run_dir).resolve(), uri
        self.registered: list[str] = []
        self._client: MlflowClient | None = None
        self._replays: dict[Path, Replay] = {}
        self._sizes: dict[Path, int] = {}

    @property
    def refused(self) -> list[str]:
        return [text for replay in self._replays.values() for text in replay.refused]

    def step(self) -> int:
        """Repeat what is new, the search's own first; the number of lines taken. Raises as a Replay does."""
        taken = 0
        for log in sorted(self.run_dir.parent.glob(f"{glob.escape(self.run_dir.name)}*/{LOG}")):
            size = log.stat().st_size
            if size == self._sizes.get(log.parent):
                continue
            self._client = self._client or connect(self.uri)
            replay = self._replays.setdefault(log.parent, Replay(log.parent, self.uri, client=self._client))
            taken += replay.step()
            self._sizes[log.parent] = size
        return taken
