"""MLflow by replay: a run's event log (`runs/<run_id>/events.jsonl`) is the truth, MLflow is a copy of it.

Live tracking and `trimtab report --sync` are the same act: read what is new in the log, repeat it to MLflow, remember
in `mlflow.json` beside the log how far it got. Every call may be repeated: runs are found again by their tags, and
points carry the events' own times and steps, so that the store drops doubles.

Experiment `trimtab/<job>` > the job's run, named by its run id > one nested run for each stage, cached ones included.
Experiment `trimtab/tune/<search>` > the search's run > a nested run for each trial > one for each stage that it ran;
stages that it found are the trial's tags `trimtab.found.<label>`.
The job's run gets the event log and the report as artifacts; a training stage gets its small text files (metrics,
record, model card, model config). Weights: where MLflow keeps artifacts in a local folder, `model/` is logged as hard
links, which take no room; to a remote store weights are not sent. The tag `trimtab.model_path` says where they are
either way. TRIMTAB_MLFLOW_MODELS=1 sends them to a remote store too, =0 never logs them.

MLflow is imported by the functions that use it, in a live run by the tracker's thread: the import and the first
migration of an empty database take about 5 s of processor time and 220 MB of memory.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from trimtab.errors import DataError, TrimtabError
from trimtab.run.log import LOG
from trimtab.run.track_replay import Replay, SearchReplay
from trimtab.run.track_words import default_uri, one_line, short, without_password

REPLAY_LATER = "trimtab report --sync"


class Tracker:
    """A thread that replays a run's log every `every` seconds while the run lives, and never disturbs it.

    With `replay=SearchReplay` it follows a search and its trials.
    """

    def __init__(
        self, run_dir: Path, uri: str, *, every: float = 2.0, replay: type[Replay | SearchReplay] = Replay
    ) -> None:
        self.replay = replay(run_dir, uri)
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
            return min(60.0, 2.0 ** min(self._failures, 6))
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


def _refusals(replay: Replay | SearchReplay) -> str | None:
    if not replay.refused:
        return None
    more = f" (and {len(replay.refused) - 1} more)" if len(replay.refused) > 1 else ""
    return f"MLflow at {without_password(replay.uri)} refused: {short(replay.refused[0])}{more}"
