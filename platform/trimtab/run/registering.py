"""A job's `register: {TRAINING: NAME}`: what it trains becomes a version of a registered model.

It goes the way of all tracking: the run's log says that a model is there, and its replay makes the version, at once or
when the store answers again. The same weights are one version, however often they are registered. MLflow's `@latest` is
the highest version; another alias is moved only where the job names it, as in `smol-arm@candidate`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trimtab.models.source import weights_hash
from trimtab.run.artifact import Node
from trimtab.run.remote import fetch
from trimtab.run.track_words import TAG, Event, clean, ms
from trimtab.training.curves import TRAININGS

if TYPE_CHECKING:
    from mlflow import MlflowClient

LATEST = "latest"
WEIGHTS = "trimtab.weights"
REGISTERED = ("trimtab.stage_id", "trimtab.label", "trimtab.run_id", "trimtab.base_model", "trimtab.objective")
"""Tags of a version that say where it comes from."""
NAME = re.compile(r"([A-Za-z0-9][\w.-]*)(?:@((?!v\d+$)[A-Za-z][\w-]*))?")
Problem = tuple[tuple[str, ...], str]


class Wanted(NamedTuple):
    """The output of a training, and what it is registered as."""

    node: Node
    name: str
    alias: str

    def event(self, job: str, kind: str) -> Event:
        """What the run's log says when the model is there."""
        spec, artifact = self.node.spec, self.node.artifact
        tags = {
            "trimtab.stage_id": artifact.id,
            "trimtab.key": artifact.key,
            "trimtab.label": self.node.label,
            "trimtab.job": job,
            "trimtab.kind": kind,
            "trimtab.base_model": spec.model.source,
            "trimtab.layers": spec.model.layers,
            "trimtab.objective": getattr(getattr(spec, "objective", None), "kind", None),
        }
        told = {name: str(value) for name, value in tags.items() if value is not None}
        where = {"stage_id": artifact.id, "path": str(artifact.folder)}
        return {"event": "register", "name": self.name, "alias": self.alias, "tags": told} | where


def wanted(register: Any, nodes: Iterable[Node]) -> tuple[list[Wanted], list[Problem]]:
    """What a job registers, and what is wrong with that.

    A training is called by its label, or without the seed where there is one of the name; in several rounds, the last.
    """
    if not isinstance(register, Mapping):
        return [], [(("register",), "should be a mapping of trainings to names, as in {arm: smol-arm}")]
    by_label = {_short(node.label): node for node in nodes if node.artifact.stage in TRAININGS}
    found, problems = [], []
    for training, name in register.items():
        several = [label for label in by_label if training in (label, label.rpartition(" / ")[-1])]
        match = NAME.fullmatch(name) if isinstance(name, str) else None
        if len(several) == 1 and match:
            found.append(Wanted(by_label[several[0]], match[1], match[2] or LATEST))
        if not match:
            said = f"{name!r} is no name for a registered model; write NAME, or NAME@ALIAS to move an alias too"
            problems.append((("register", training), said))
        if len(several) != 1:
            problems.append((("register", training), _unclear(str(training), several, list(by_label))))
    return found, problems


def _short(label: str) -> str:
    *place, last = label.split(" / ")
    return " / ".join([*place, last.removeprefix("train ")])


def _unclear(training: str, several: list[str], labels: list[str]) -> str:
    if several:
        return f"{len(several)} trainings have this name; take one of them: {', '.join(several)}"
    names = list(dict.fromkeys(label.rpartition(" / ")[-1] for label in labels))
    close = difflib.get_close_matches(training, names, n=1)
    asked = f"; did you mean {close[0]!r}?" if close else ""
    return f"no training {training!r}{asked}; there: {', '.join(names)}"


def telling(say: Callable[[Event], None], told: list[Wanted], job: str, kind: str) -> Callable[[Event], None]:
    """Passes a run's events on, and says after the end of a stage that what it made is to be registered."""

    def tell(event: Event) -> None:
        say(event)
        if event.get("event") == "stage_end" and event.get("status") in ("done", "cached"):
            for one in told:
                if one.node.artifact.id == event["stage_id"]:
                    fetch([one.node.artifact])
                    say(one.event(job, kind))

    return tell


def register(client: MlflowClient, event: Event, *, made: Path | None, run: str, tags: Mapping[str, str]) -> str:
    """Make the version unless these weights are one, and move the alias; `models:/NAME/VERSION`.

    To a tracking server the weights are sent, which then stands for them; else the version is the artifact's folder.
    Raises FileNotFoundError where there is no model (any more).
    """
    folder = made / "model" if made else None
    if folder is None or not (folder / "config.json").exists():
        raise FileNotFoundError(f"{event['stage_id']} has no model folder that {event['name']} could be")
    name, weights = event["name"], weights_hash(folder)
    _ensure(client, name)
    number = _same(client, name, weights)
    if number is None:
        known = {clean(key): value[:TAG] for key, value in {**tags, **event["tags"], WEIGHTS: weights}.items()}
        number = client.create_model_version(name, _source(client, folder, run), run, tags=known).version
    _move(client, event, str(number))
    return f"models:/{name}/{number}"


def _ensure(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _same(client: MlflowClient, name: str, weights: str) -> str | None:
    """The newest version of these weights whose files, where they are local, are there."""
    found = [one for one in client.search_model_versions(f"name='{name}'") if one.tags.get(WEIGHTS) == weights]
    there = [one for one in found if not one.source.startswith("file:") or _config(one.source).exists()]
    return max((str(one.version) for one in there), key=int, default=None)


def _config(source: str) -> Path:
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    return Path(url2pathname(urlsplit(source).path)) / "config.json"


def _source(client: MlflowClient, folder: Path, run: str) -> str:
    if not client.tracking_uri.startswith("http"):
        return folder.resolve().as_uri()
    client.log_artifacts(run, str(folder), "model")
    return f"runs:/{run}/model"


def _move(client: MlflowClient, event: Event, number: str) -> None:
    """Once an event: what is told again later does not undo what others did since."""
    name, alias = event["name"], event["alias"]
    if alias == LATEST:
        return
    key = f"trimtab.alias.{alias}"
    if ms(event) > int(client.get_registered_model(name).tags.get(key, 0)):
        client.set_registered_model_alias(name, alias, number)
        client.set_registered_model_tag(name, key, str(ms(event)))
