"""What travels between a node's mirror and a remote storage while stages run; nothing where storage is a folder.

Before a stage its inputs are fetched, on every node that runs it. What a stage that resumes leaves on the way
(checkpoints, finished batches) is pushed as soon as it is whole, and fetched by whoever begins the stage later, on
whichever node. What a stage made on a node that does not see the driver's folder is pushed from there.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.compute import Compute
from trimtab.errors import ResourceError, Stopped
from trimtab.run.artifact import Artifact, Node
from trimtab.run.lease import leased
from trimtab.run.log import LOG, Listener
from trimtab.run.remote import MADE, attempt_of, deliver, fetch, look, named_in, push, push_logs
from trimtab.run.store import store_of
from trimtab.run_log import LOG as LOG_TXT
from trimtab.training.world import World

AWAY = "-away"
EVERY_S = 2.0
LOGS_EVERY_S = 30.0


@dataclass(frozen=True)
class Carrier:
    """What goes with a stage to the node that runs it."""

    artifact: Artifact
    needs: tuple[Artifact, ...]
    resumes: bool
    fresh: bool
    """Not to go on from what another node has left."""

    @classmethod
    def of(cls, node: Node, compute: Compute) -> Carrier:
        named = named_in(node.spec.model_dump_json(), node.artifact) if node.artifact.remote else []
        look(named)
        deliver(named)
        resumes, fresh = node.stage.resumes, compute.resume == "never"
        return cls(node.artifact, (*node.needs.values(), *named), resumes, fresh)

    def place(self, out: Path) -> Path:
        """Where a worker writes: the driver's folder, or one of its own on a node that does not see that."""
        if self.artifact.remote is None or out.is_dir():
            return out
        away = out.with_name(out.name + AWAY)
        away.mkdir(parents=True, exist_ok=True)
        return away

    @contextmanager
    def around(self, out: Path, ranks: World) -> Iterator[None]:
        """Bring what the stage needs, and take away what it makes. Raises ResourceError."""
        if self.artifact.remote is None:
            yield
            return
        away = out.name.endswith(AWAY)
        if away and ranks.first:
            _clear(out)
            store_of(self.artifact.remote).remove(f"failed/{self.artifact.id}")
        ranks.gather(None)
        try:
            fetch(self.needs)
            with Partial(self.artifact).carried(ranks, fresh=self.fresh) if self.resumes else nullcontext():
                yield
        except Exception:
            if away:
                push_logs(self.artifact, out)
            raise
        if ranks.first and not away:
            (out / MADE).touch()
        elif ranks.first:
            push(self.artifact, out, attempt_of(Path(out.name.removesuffix(AWAY))))
            shutil.rmtree(out, ignore_errors=True)


def _clear(out: Path) -> None:
    """Remove what an earlier attempt left, but for its logs."""
    for left in out.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
        elif not left.name.endswith(LOG_TXT):
            left.unlink()


class Partial:
    """What a stage that resumes has so far: files, and folders of checkpoints, each whole once it has its name.

    One process of a node pushes it. What goes here (older checkpoints) goes there too, if it was pushed from here.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.folder, self.under = artifact.partial, f"partial/{artifact.id}"
        self.store = store_of(artifact.remote)
        self.lease = artifact.lease
        self.pushed: set[str] = set()
        self.over, self.failed = threading.Event(), False

    @contextmanager
    def carried(self, ranks: World, *, fresh: bool) -> Iterator[None]:
        """Have what there is of it on every node; push what is added while the block runs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone("partial"):
            self.push()
        ranks.gather(None)  # so that all of its nodes fetch the same
        if not fresh:
            with self._alone("partial"):
                self.fetch()
        thread = threading.Thread(target=self._watch, name="carries checkpoints", daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            self.failed = True
            raise
        finally:
            self.over.set()
            thread.join()

    def _alone(self, what: str, stopped: Callable[[], bool] = lambda: False) -> AbstractContextManager[None]:
        return leased(self.lease.with_suffix(f".{what}.lock"), waits=lambda: None, stopped=stopped)

    def _watch(self) -> None:
        with suppress(Stopped), self._alone("pushing", self.over.is_set):
            while not self.over.wait(EVERY_S):
                self._tried()
            if self.failed:
                self._tried()

    def _tried(self) -> None:
        """A storage that is gone for a while costs a checkpoint there, and not the training."""
        try:
            self.push()
        except (ResourceError, OSError) as error:
            print(f"what there is so far was not pushed, it is tried again: {error}", flush=True)

    def push(self) -> None:
        """What is whole and not there yet; the file that makes a checkpoint whole last."""
        from trimtab.training.checkpoint import MANIFEST

        entries = {entry.name: entry for entry in sorted(self.folder.glob("[!.]*"))}
        new = entries.keys() - self.pushed
        there = self.store.sizes(self.under) if new else {}
        for name in sorted(new):
            last = f"{name}/{MANIFEST}" if entries[name].is_dir() else name
            try:
                files = _files(entries[name], name)
                if any(there.get(path) != file.stat().st_size for path, file in files.items()):
                    for part in ([path for path in files if path != last], [last]):
                        self.store.put({f"{self.under}/{path}": files[path] for path in part})
            except (ResourceError, OSError, KeyError):
                if (self.folder / last).exists():
                    raise
                continue  # it was let go of meanwhile
            self.pushed.add(name)
        for name in sorted(self.pushed - entries.keys()):
            self.store.remove(f"{self.under}/{name}")
            self.pushed.remove(name)

    def fetch(self) -> None:
        """Files that are not here, and the newest checkpoint that is as it was written."""
        from trimtab.training.checkpoint import MANIFEST, flaw

        there = self.store.sizes(self.under)
        for name in there:
            if "/" not in name and not (self.folder / name).exists():
                self._take([name], name)
        whole = [name.removesuffix(f"/{MANIFEST}") for name in there if name.endswith(f"/{MANIFEST}")]
        for step in sorted(whole, reverse=True):
            if (self.folder / step).exists():
                return
            self._take([name for name in there if name.startswith(f"{step}/")], step)
            if flaw(self.folder / step, {}) is None:
                return
            shutil.rmtree(self.folder / step)
            self.store.remove(f"{self.under}/{step}")

    def _take(self, files: list[str], name: str) -> None:
        """Into a folder aside, renamed when whole."""
        aside = self.folder / ".fetched"
        shutil.rmtree(aside, ignore_errors=True)
        self.store.get({f"{self.under}/{file}": aside / file for file in files})
        (aside / name).rename(self.folder / name)
        shutil.rmtree(aside)
        self.pushed.add(name)


def _files(entry: Path, name: str) -> dict[str, Path]:
    if not entry.is_dir():
        return {name: entry}
    return {f"{name}/{path.relative_to(entry)}": path for path in sorted(entry.rglob("*")) if path.is_file()}


def kept(folder: Path, remote: str | None) -> list[Listener]:
    """A listener that keeps a run's log in the remote storage; what stands there of it is fetched first.

    Raises ResourceError where that cannot be read.
    """
    return [] if remote is None else [_Kept(folder, remote)]


class _Kept:
    def __init__(self, folder: Path, remote: str) -> None:
        self.folder, self.under, self.store = folder, f"runs/{folder.name}", store_of(remote)
        self.sizes: dict[str, int] = {}
        self.over = threading.Event()
        if not (folder / LOG).exists():
            there = self.store.sizes(self.under)
            self.store.get({f"{self.under}/{name}": folder / name for name in there})
        self.thread = threading.Thread(target=self._keep, name="keeps the run's log", daemon=True)
        self.thread.start()

    def __call__(self, event: dict[str, Any]) -> None:
        if event.get("event") == "run_end":
            self.over.set()
            self.thread.join()

    def _keep(self) -> None:
        while not self.over.wait(LOGS_EVERY_S):
            self._push()
        self._push()

    def _push(self) -> None:
        with suppress(ResourceError, OSError):  # the log here is the truth, and is tried again
            files = _files(self.folder, self.under) if self.folder.is_dir() else {}
            sizes = {name: path.stat().st_size for name, path in files.items()}
            changed = {name for name, size in sizes.items() if self.sizes.get(name) != size}
            if changed:
                self.store.put({name: files[name] for name in changed})
            self.sizes = sizes
