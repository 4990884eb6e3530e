"""Models in a registry, for tests: folders that look like models, and versions of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trimtab.run.registering import register
from trimtab.run.track_words import connect


def made(storage: Path, stage_id: str, *, weights: str = "w", layers: int = 3) -> Path:
    """The output of a training, as far as a registry looks at it."""
    model = storage / "artifacts" / stage_id / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text(f'{{"num_hidden_layers": {layers}}}')
    (model / "model.safetensors").write_text(weights)
    return model.parent


class Store:
    """A storage folder with a registry in it."""

    def __init__(self, storage: Path, empty: Path) -> None:
        shutil.copy(empty, storage / "mlflow.db")
        self.storage, self.uri, self.time = storage, f"sqlite:///{storage}/mlflow.db", 1000.0
        self.client = connect(self.uri)
        self.run = self.client.create_run("0").info.run_id

    def register(self, folder: Path, name: str, *, alias: str = "latest", time: float | None = None) -> str:
        """What a run's replay does when its log says that a model is there."""
        self.time += 1
        tags = {"trimtab.stage_id": folder.name, "trimtab.objective": "arm"}
        event = {"stage_id": folder.name, "name": name, "alias": alias, "tags": tags, "time": time or self.time}
        return register(self.client, event, made=folder, run=self.run, tags={"trimtab.run_id": "run-1"})


@contextmanager
def two_arms(storage: Path, empty: Path) -> Iterator[Store]:
    """The one registry there is: `arm` in two versions, the first of which is `champion`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store = Store(storage, empty)
        store.register(made(storage, "align-1"), "arm", alias="champion")
        store.register(made(storage, "align-2", weights="x", layers=2), "arm")
        yield store
