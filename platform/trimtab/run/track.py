"""MLflow by replay: a run's event log (`runs/<run_id>/events.jsonl`) is the truth, MLflow is a copy of it.

Live tracking and `trimtab report --sync` are the same act: read what is new in the log, repeat it to MLflow, remember
in `mlflow.json` beside the log how far it got. Every call may be repeated: runs are found again by their tags, and
points carry the events' own times and steps, so that the store drops doubles.

Experiment `trimtab/<job>` > the job's run, named by its run id > one nested run for each stage, cached ones included.
The job's run gets the event log and the report as artifacts; a training stage gets its small text files (metrics,
record, model card, model config). Weights: where MLflow keeps artifacts in a local folder, `model/` is logged as hard
links, which take no room; to a remote store weights are not sent. The tag `trimtab.model_path` says where they are
either way. TRIMTAB_MLFLOW_MODELS=1 sends them to a remote store too, =0 never logs them.

MLflow is imported by the functions that use it, in a live run by the tracker's thread: the import and the first
migration of an empty database take about 5 s of processor time and 220 MB of memory.
"""

from __future__ import annotations

import json
import os
import threading
from copy import deepcopy
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from trimtab.errors import DataError, TrimtabError
from trimtab.run.track_events import JOB, State, Writer
from trimtab.run.track_words import Event, connect, experiment_id, one_line, short, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOG, STATE = "events.jsonl", "mlflow.json"
CHUNK = 1 << 20
REPLAY_LATER = "trimtab report --sync"


def default_uri(storage: Path) -> str:
    """MLFLOW_TRACKING_URI, or a SQLite file in the storage folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _own_uri(storage)


def _own_uri(storage: Path) -> str:
    return f"sqlite:///{Path(storage).resolve()}/mlflow.db"


def artifacts_of(uri: str, storage: Path) -> str | None:
    """Where a new experiment keeps its files: in the storage folder where the store is there too."""
    return (storage / "mlartifacts").as_uri() if uri == _own_uri(storage) else None


class Replay:
    """Brings MLflow up to date with one run's event log."""

    def __init__(self, run_dir: Path, uri: str) -> None:
        self.run_dir, self.uri = Path(run_dir).resolve(), uri
        self.refused: list[str] = []
        self.registered: list[str] = []
        self._client: MlflowClient | None = None
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
            state = self._find_again(client, state, first[0])
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

    def _find_again(self, client: MlflowClient, state: State, first: bytes) -> State:
        """Take over the runs that the server has of this job; start from nothing if it has not the job's."""
        found = self._search(client, state.experiment) if state.experiment else {}
        if JOB not in found:
            place = artifacts_of(self.uri, self.run_dir.parent.parent)
            state = State(without_password(self.uri), experiment_id(client, self._name(first), place))
            found = self._search(client, state.experiment)
        state.runs = found
        return state

    def _search(self, client: MlflowClient, experiment: str) -> dict[str, str]:
        from mlflow.entities import ViewType

        runs, token = [], None
        while token is None or token:
            page = client.search_runs(
                [experiment], f"tags.`trimtab.run_id` = '{self.run_dir.name}'", ViewType.ALL, page_token=token
            )
            runs += page
            token = page.token or ""
        return {run.data.tags.get("trimtab.stage_id", JOB): run.info.run_id for run in runs}

    def _name(self, first: bytes) -> str:
        given = os.environ.get("MLFLOW_EXPERIMENT_NAME")
        return given or f"trimtab/{self._parse(first).get('name') or self.run_dir.name}"

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


class Tracker:
    """A thread that replays a run's log every `every` seconds while the run lives, and never disturbs it."""

    def __init__(self, run_dir: Path, uri: str, *, every: float = 2.0) -> None:
        self.replay = Replay(run_dir, uri)
        self.every = every
        self._closing = threading.Event()
        self._failure: str | None = None
        self._failures = 0
        self._thread = threading.Thread(target=self._work, name="trimtab-mlflow", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        pause, last = 0.0, False
        while not last:
            last = self._closing.wait(pause)
            pause = self._step()

    def _step(self) -> float:
        """One step; seconds to wait before the next: 2, 4, 8 .. 60 while it fails."""
        try:
            self.replay.step()
        except Exception as error:  # noqa: BLE001  a run never fails for its tracking
            self._failure = self._failure or one_line(error)
            self._failures += 1
            return min(60.0, 2.0**self._failures)
        self._failure, self._failures = None, 0
        return self.every

    def close(self, timeout: float = 30.0) -> str | None:
        """Replay what is left, for at most `timeout` seconds; one line saying what MLflow lacks, or None."""
        self._closing.set()
        self._thread.join(timeout)
        where = f"MLflow at {without_password(self.replay.uri)}"
        if self._thread.is_alive():
            why = self._failure or f"not finished after {timeout:g} s"
            return f"{where} is behind: {why}. Bring it up to date later: {REPLAY_LATER}"
        if self._failure:
            return f"{where} is behind: {self._failure}. Bring it up to date later: {REPLAY_LATER}"
        return _refusals(self.replay)


@dataclass(frozen=True)
class Synced:
    """What `sync` did for one run: lines replayed (0 when it was up to date), and what went wrong."""

    run_id: str
    events: int
    problem: str | None = None


def sync(storage: Path, run_id: str | None = None, *, uri: str | None = None) -> list[Synced]:
    """Bring MLflow up to date with every run of a storage folder, or with one.

    Runs that the server has lost are made again. Stops at the first failure of the store itself, which is the last
    item's problem then. Raises DataError when the storage has no such run.
    """
    runs = sorted(log.parent for log in (Path(storage) / "runs").glob(f"*/{LOG}"))
    chosen = [run for run in runs if run_id in (None, run.name)]
    if run_id and not chosen:
        near = get_close_matches(run_id, [run.name for run in runs]) or [run.name for run in runs[-3:]]
        raise DataError(f"no run {run_id} in {Path(storage) / 'runs'}; there is: {', '.join(near) or 'none'}")
    done = []
    for run in chosen:
        replay = Replay(run, uri or default_uri(storage))
        try:
            done.append(Synced(run.name, replay.step(), _refusals(replay)))
        except TrimtabError as error:
            done.append(Synced(run.name, 0, str(error)))
        except Exception as error:  # noqa: BLE001  stores fail in many ways; each is told to the user
            done.append(Synced(run.name, 0, f"MLflow at {without_password(replay.uri)}: {one_line(error)}"))
            break
    return done


def _refusals(replay: Replay) -> str | None:
    if not replay.refused:
        return None
    more = f" (and {len(replay.refused) - 1} more)" if len(replay.refused) > 1 else ""
    return f"MLflow at {without_password(replay.uri)} refused: {short(replay.refused[0])}{more}"
