"""Every version of an ensemble that is deployed is recorded in MLflow; its replica starts that and does not wait."""

import json
import logging
import os
import queue
import subprocess
import sys
import threading
from tempfile import TemporaryFile
from typing import Any

from trimtab.models.source import model_folder
from trimtab.run.track import default_uri
from trimtab.serving.config import GuidedArgs
from trimtab.serving.registered import Origins

LOG = logging.getLogger("ray.serve")
PATIENCE_S = 300
QUEUE = 16
"""Debates that wait to be kept."""
HOW = {"layers", "dtype", "template", "revision", "url"}


def record(args: GuidedArgs, ensemble: str, version: str, origins: Origins) -> threading.Thread:
    """Say to MLflow what is served, beside the replica's work. What goes wrong is a warning in the replica's log."""
    given = (args, ensemble, version, origins)
    thread = threading.Thread(target=_tell, args=given, name="trimtab-record", daemon=True)
    thread.start()
    return thread


def facts(args: GuidedArgs, ensemble: str, version: str, origins: Origins) -> dict[str, Any]:
    """A version of an ensemble in plain types: its configuration, and what its members are."""
    members = {
        name: {
            "source": origins[name].source if name in origins else member.source,
            "version": origins[name].version if name in origins else None,
            "folder": None if member.url else str(model_folder(member.source, args.cache, revision=member.revision)),
            "config": member.model_dump(mode="json", include=HOW, exclude_none=True),
        }
        for name, member in args.specs(ensemble).items()
    }
    config = args.groups[ensemble].model_dump(mode="json", exclude_none=True)
    where = {"uri": default_uri(args.storage), "storage": str(args.storage)}
    return where | {"ensemble": ensemble, "version": version, "config": config, "members": members}


def _tell(args: GuidedArgs, ensemble: str, version: str, origins: Origins) -> None:
    try:
        problem = _said(facts(args, ensemble, version, origins))
    except Exception as error:  # noqa: BLE001  a replica never fails for what is told of it
        problem = f"{type(error).__name__}: {error}"
    if problem:
        LOG.warning("%s %s is not recorded in MLflow: %s", ensemble, version, problem)


class Keeper:
    """Keeps debates in MLflow, one after the other, beside the replica's work; those beyond `QUEUE` are let go."""

    def __init__(self, args: GuidedArgs, debate: str, version: str) -> None:
        self.debate = debate
        self.where = {"uri": default_uri(args.storage), "storage": str(args.storage)}
        self.where |= {"ensemble": debate, "version": version}
        self._waiting: queue.Queue[dict[str, Any]] = queue.Queue(QUEUE)
        threading.Thread(target=self._work, name="trimtab-keep", daemon=True).start()

    def keep(self, asked: dict[str, Any], began: int, events: list[dict[str, Any]]) -> None:
        """A debate that is over. `began`, and each event's `at`: nanoseconds of the epoch."""
        try:
            self._waiting.put_nowait(self.where | {"asked": asked, "began": began, "events": events})
        except queue.Full:
            LOG.warning("a debate of %s is not kept: %d wait already", self.debate, QUEUE)

    def _work(self) -> None:
        while True:
            told = self._waiting.get()
            try:
                problem = _said(told)
            except Exception as error:  # noqa: BLE001  a replica never fails for what is told of it
                problem = f"{type(error).__name__}: {error}"
            if problem:
                LOG.warning("a debate of %s is not kept in MLflow: %s", self.debate, problem)


def _said(told: dict[str, Any]) -> str | None:
    """Tell it by a process of its own; what went wrong, in one line."""
    paths = os.pathsep.join(filter(None, sys.path))
    with TemporaryFile("w+") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "trimtab.run.deployments"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=err,
            env=os.environ | {"PYTHONPATH": paths},
            text=True,
        )
        try:
            process.stdin.write(json.dumps(told) + "\n")
            process.stdin.flush()
            code = process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.wait()
            process.stdin.close()
        err.seek(0)
        said = err.read().strip().splitlines()
        return (said[-1] if said else f"exit code {code}") if code else None
