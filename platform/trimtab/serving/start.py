"""Ray Serve with a serve file's applications, from the first process to the last."""

import json
import logging
import os
import re
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.environment import settle
from trimtab.errors import JobError, StageError, TrimtabError
from trimtab.run.joining import address_of, ray_at, settle_ray
from trimtab.serving.gate import Keys

if TYPE_CHECKING:
    from trimtab.serving.file import ServeFile

FAST = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}
"""Tokens pass from replica to client at a fraction of the usual cost; direct ingress would take 30 s to stop."""
PATIENT = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
"""Seconds in which Serve's proxy has to come up, three times; by itself 5, too few where the machine is busy."""
PATIENCE_S = 900
"""Seconds in which all ensembles have to be loaded."""
CAUSE = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit)\b")


@dataclass
class Served:
    """Where an API answers, and the models that can be asked for: ensembles first."""

    path: str | Path
    overrides: Sequence[str]
    file: "ServeFile"

    @property
    def url(self) -> str:
        return self.file.url

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(name for args in self.file.args.values() for name in (*args.groups, *args.models)))

    def greeting(self, *, as_json: bool = False) -> str:
        """That it is ready, and what to do with it."""
        if as_json:
            return json.dumps({"event": "ready", "url": self.url, "models": self.models})
        said = {"model": self.models[0], "messages": [{"role": "user", "content": "Hello!"}]}
        ask = f"curl {self.url}/v1/chat/completions -H 'Content-Type: application/json' -d '{json.dumps(said)}'"
        return f"ready:   {self.url}\nmodels:  {', '.join(self.models)}\ntry:     {ask}"

    def redeploy(self) -> None:
        """Read the file again, look aliases up again, and load what changed beside what runs, which finishes its work.

        Raises JobError, before anything is done, for what is wrong with the file or cannot change while it is served;
        StageError where a new version cannot be loaded.
        """
        file = _read(self.path, self.overrides)
        was, now = self.file.config, file.config
        if (was.http_options, was.proxy_location) != (now.http_options, now.proxy_location):
            raise JobError(["http_options and proxy_location cannot change while it runs: stop it and start again"])
        self.file = file
        _deploy(file)
        _wait(file)

    def until_stopped(self, ready: Callable[[], None], refused: Callable[[TrimtabError], None]) -> None:
        """Says so and stays until Ctrl-C or SIGTERM; SIGHUP redeploys, and one of the two is called then."""
        asked = threading.Event()
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has put its own in place
        signal.signal(signal.SIGHUP, lambda *_: asked.set())
        with suppress(KeyboardInterrupt):
            ready()
            while True:
                if asked.wait(1):
                    asked.clear()
                    try:
                        self.redeploy()
                    except TrimtabError as error:
                        refused(error)
                    else:
                        ready()


@contextmanager
def served(path: str | Path, overrides: Sequence[str] = ()) -> Iterator[Served]:
    """What a serve file describes, ready to answer; at the end its applications finish what they are at.

    Joins the cluster at RAY_ADDRESS, or starts one here. Raises JobError for what is wrong with the file, and where
    other machines would reach it without a key; ClusterError where nobody can join; StageError where an ensemble
    cannot be loaded.
    """
    settle()
    for name, value in (FAST | PATIENT).items():
        os.environ.setdefault(name, value)
    address = address_of()
    settle_ray(address)
    file = _read(path, overrides)
    ray = ray_at(address, namespace="serve")
    from ray import serve

    found = Served(path, overrides, file)
    try:
        _deploy(file)
        _wait(file)
        yield found
    finally:
        for application in set(serve.status().applications) & {one.name for one in found.file.config.applications}:
            serve.delete(application)
        ray.shutdown()


def _read(path: str | Path, overrides: Sequence[str]) -> "ServeFile":
    """A serve file, its models on this machine where they are served here, and what their aliases mean now."""
    from trimtab.serving.checks import mistakes
    from trimtab.serving.file import load_serve
    from trimtab.serving.registered import revision

    file = load_serve(path, overrides)
    for args in file.args.values():
        Keys(args.api_keys_env, os.environ).open_to(file.config.http_options.host)
    if address_of() == "local":
        found = [mistake for args in file.args.values() for mistake in mistakes(args, fetch=True)]
        if found:
            raise JobError([f"{'.'.join(map(str, loc))}: {text}" for loc, text in found])
    for application in file.config.applications:
        if own := file.args.get(application.name):
            application.args["revision"] = revision(own)
    return file


def _deploy(file: "ServeFile") -> None:
    """As `serve run` does with a file; Serve has no public call that takes one."""
    from ray.serve._private.api import serve_start

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    config = file.config
    client = serve_start(http_options=config.http_options.model_dump(), proxy_location=config.proxy_location)
    client.deploy_apps(config)


def _wait(file: "ServeFile") -> None:
    from ray import serve

    until = time.monotonic() + PATIENCE_S
    while True:
        applications = serve.status().applications
        running = {name for name, application in applications.items() if application.status == "RUNNING"}
        if running >= set(file.args) and _ready(file.url):
            return
        for name, application in applications.items():
            if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                told = [one.message for one in application.deployments.values() if one.message]
                raise StageError(f"{name}: " + "; ".join(dict.fromkeys(map(cause, [application.message, *told]))))
        if time.monotonic() > until:
            raise StageError(f"{', '.join(file.args)}: not ready after {PATIENCE_S} s")
        time.sleep(0.5)


def cause(message: str) -> str:
    """Without the traceback that Serve puts before it."""
    lines = message.strip().splitlines()
    starts = [i for i, line in enumerate(lines) if CAUSE.match(line)]
    return "\n".join(lines[starts[-1] :] if starts else lines)


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=10) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
