"""An alias is moved in the registry and `trimtab serve` is told: a new version comes, and no request is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from tests.ports import free_port
from tests.registering import Store
from tests.serving.kit import END, saved, until

COMPLETIONS = "/v1/completions"
ASKED: dict[str, Any] = {"model": "duo", "prompt": "a", "max_tokens": 2}
LONG = ASKED | {"max_tokens": 1500, "logit_bias": {str(END): -100}, "stream": True}


def serve_file(storage: Path, base: Path) -> dict[str, Any]:
    duo = {"base": "base", "helpers": ["arm"], "guide": {"kind": "genarm"}, "context": 4000}
    models = {"base": str(base), "arm": "models:/arm@champion"}
    args = {"models": models, "ensembles": {"duo": duo}, "limits": {"max_tokens": 2000}, "storage": str(storage)}
    deployment = {"name": "duo", "max_surge_percent": 100, "ray_actor_options": {"num_cpus": 0.5}}
    application = {"name": "guided", "route_prefix": "/", "import_path": "trimtab.serving.app:build", "args": args}
    http = {"host": "127.0.0.1", "port": free_port()}
    where = {"proxy_location": "HeadOnly", "http_options": http}
    return where | {"applications": [application | {"deployments": [deployment]}]}


class Asking:
    """Somebody who asks all the time."""

    def __init__(self, url: str) -> None:
        self.url, self.over, self.answers = url, threading.Event(), []
        self.thread = threading.Thread(target=self._ask, daemon=True)
        self.thread.start()

    def _ask(self) -> None:
        with httpx.Client(base_url=self.url, timeout=180) as http:
            while not self.over.is_set():
                self.answers.append(http.post(COMPLETIONS, json=ASKED))
                time.sleep(0.05)

    @property
    def versions(self) -> list[str | None]:
        return [one.headers.get("x-ensemble-version") for one in self.answers]

    def stop(self) -> None:
        self.over.set()
        self.thread.join(180)


def streamed(url: str, begun: threading.Event) -> tuple[str, list[str]]:
    """The version that wrote a long completion, and the last two lines."""
    with httpx.Client(base_url=url, timeout=120) as http, http.stream("POST", COMPLETIONS, json=LONG) as answer:
        said = []
        for line in filter(None, answer.iter_lines()):
            said.append(line.removeprefix("data: "))
            begun.set()
    return answer.headers["x-ensemble-version"], said[-2:]


def recorded(store: Store) -> set[tuple[str, str | None]]:
    """Versions of the ensemble in MLflow, and of its helper."""
    experiment = store.client.get_experiment_by_name("serving")
    runs = store.client.search_runs([experiment.experiment_id]) if experiment else []
    return {(run.data.tags["trimtab.ensemble_version"], run.data.params.get("members.arm.version")) for run in runs}


@pytest.mark.ray
@pytest.mark.slow
def test_a_moved_alias_is_served_after_sighup_without_a_lost_request(tmp_path: Path, empty_store: Path) -> None:
    store = Store(tmp_path, empty_store)
    for number, layers in ((1, 1), (2, 3)):
        made = tmp_path / "artifacts" / f"align-{number}"
        saved(made / "model", layers=layers)
        store.register(made, "arm", alias="champion", time=1.0)
    file, raw = tmp_path / "serve.yaml", serve_file(tmp_path, saved(tmp_path / "base"))
    file.write_text(yaml.safe_dump(raw))
    given = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TRIMTAB_", "MLFLOW_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "trimtab", "serve", str(file), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=given | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    try:
        ready = json.loads(process.stdout.readline())
        url, begun = ready["url"], threading.Event()
        with ThreadPoolExecutor() as pool:
            asking, stream = Asking(url), pool.submit(streamed, url, begun)
            assert begun.wait(180)
            store.client.set_registered_model_alias("arm", "champion", "2")
            process.send_signal(signal.SIGHUP)
            assert json.loads(process.stdout.readline()) == ready
            until(lambda: len(set(asking.versions)) == 2)
            asking.stop()
            old, (finish, last) = stream.result()
        new = httpx.get(f"{url}/ready", timeout=60).json()["ensembles"]["duo"]
        assert old != new
        assert (json.loads(finish)["choices"][0]["finish_reason"], last) == ("length", "[DONE]")
        assert {one.status_code for one in asking.answers} == {200}
        assert list(dict.fromkeys(asking.versions)) == [old, new]
        assert asking.answers[-1].json()["system_fingerprint"] == new

        file.write_text(yaml.safe_dump(raw).replace("@champion", "@nobody"))
        process.send_signal(signal.SIGHUP)
        assert "no alias 'nobody'" in json.loads(process.stdout.readline())["problems"][0]
        assert httpx.post(f"{url}{COMPLETIONS}", json=ASKED, timeout=60).headers["x-ensemble-version"] == new
        until(lambda: recorded(store) == {(old, "models:/arm/1"), (new, "models:/arm/2")}, seconds=240)
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
