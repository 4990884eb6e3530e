"""What travels between a node's mirror and a remote storage while stages run; nothing where storage is a folder.

Before a stage its inputs are fetched, on every node that runs it. What a stage that resumes leaves on the way
(checkpoints, finished batches) is pushed as soon as it is whole, and fetched by whoever begins the stage later, on
whichever node. What a stage made on a node that does not see the driver's folder is pushed from there.
"""

from __future__ import annotations

import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from trimtab.compute import Compute
from trimtab.errors import ResourceError, Stopped
from trimtab.run.artifact import Artifact, Node
from trimtab.run.lease import leased
from trimtab.run.nodes import WAY
from trimtab.run.remote import (
    MADE,
    attempt_of,
    deliver,
    fetch,
    files_in,
    look,
    named_in,
    sent,
    write_names,
)
from trimtab.run.store import store_of
from trimtab.run_log import LOG as LOG_TXT
from trimtab.run_log import clear, log_of
from trimtab.training.world import World

AWAY = "-away"
PUSHED = ".pushed"
EVERY_S = 2.0


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
        """Where a worker writes: the driver's folder, or one of its own on a node that does not see that.

        Raises ResourceError for a node that then has no way to bring back what it makes.
        """
        if out.is_dir():
            return out
        if self.artifact.remote is None:
            raise ResourceError(
                f"node {socket.gethostname()} does not see {out}, to which the run's driver writes; {WAY}"
            )
        away = out.with_name(out.name + AWAY)
        away.mkdir(parents=True, exist_ok=True)
        return away

    @contextmanager
    def around(self, out: Path, ranks: World) -> Iterator[None]:
        """Bring what the stage needs, and take away what it makes. Raises ResourceError."""
        if self.artifact.remote is None:
            yield
            return
        clear(out)  # by all: which ranks share a node is not known
        apart = any(ranks.gather(out.name.endswith(AWAY)))
        fetch(self.needs)
        with Partial(self.artifact).carried(ranks, fresh=self.fresh) if self.resumes else nullcontext():
            yield
        if apart:
            self._push(out, ranks)
        elif ranks.first:
            (out / MADE).touch()

    def _push(self, out: Path, ranks: World) -> None:
        """What was made, from every node: its log by each rank, all else by the first that comes to it."""
        sys.stdout.flush()
        sys.stderr.flush()
        ranks.gather(None)
        attempt, log = attempt_of(Path(out.name.removesuffix(AWAY))), log_of(ranks.rank)
        files = {name: path for name, path in files_in(out).items() if "/" in name or not name.endswith(LOG_TXT)}
        if not (first := _first_in(out)):
            files = {}
        if (out / log).exists():
            files[log] = shutil.copy(out / log, out / f".{log}")  # what is said from now on is left out
        listed = ranks.gather(sent(self.artifact, files, attempt))
        if ranks.first:
            write_names(self.artifact, {name: found for of_rank in listed for name, found in of_rank.items()}, attempt)
        if first and out.name.endswith(AWAY):
            shutil.rmtree(out, ignore_errors=True)


def _first_in(out: Path) -> bool:
    """Whether of the ranks that write to a folder this is the first to ask."""
    with suppress(FileExistsError):
        (out / PUSHED).touch(exist_ok=False)
        return True
    return False


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
    return {f"{name}/{below}": path for below, path in files_in(entry).items()} if entry.is_dir() else {name: entry}
