"""Models that a registry names: `models:/NAME@ALIAS` and `models:/NAME/VERSION` -> a version, and a folder of it.

The registry is MLflow's, in the store that runs are tracked in: MLFLOW_TRACKING_URI, or the SQLite file in the storage
folder. `@latest` is MLflow's own word for the highest version. A version whose source is a local folder is used where
it is; another one is downloaded once into the storage's cache, under its own name. No pickled flavour is read: a
version is a folder written by save_pretrained.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from trimtab.errors import ModelError
from trimtab.models.source import REGISTRY, model_folder, split_source, whole
from trimtab.run.track import default_uri
from trimtab.run.track_words import connect, one_line, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

LATEST = "latest"
SOURCE = re.compile(rf"{REGISTRY}([^/:@'\"]+)(?:@([\w-]+)|/(\d+))")
WAY_OUT = "trimtab run jobs/guides.yaml registers two; any job does what its key says, register: {TRAINING: NAME}"


class Version(NamedTuple):
    """A version of a registered model: where its files are, and what is known of how they were made."""

    name: str
    number: str
    place: str
    run: str
    tags: dict[str, str]

    @property
    def source(self) -> str:
        return f"{REGISTRY}{self.name}/{self.number}"

    def folder(self, cache: Path) -> Path:
        """Where it is used: in place, or where it will stand once it is downloaded."""
        if local := local_path(self.place):
            return local
        own = hashlib.sha256(self.place.encode()).hexdigest()[:8]
        return cache.expanduser().resolve() / "registry" / f"{self.name}-{self.number}-{own}"


class Registry:
    """Looks models up; an alias that was looked up once means the same version to the end."""

    def __init__(self, storage: Path, uri: str | None = None) -> None:
        self.storage = storage.expanduser().resolve()
        self.uri = uri or default_uri(self.storage)
        self._found: dict[str, Version] = {}

    @property
    def where(self) -> str:
        return f"the registry at {without_password(self.uri)}"

    @property
    def cache(self) -> Path:
        return self.storage / "cache"

    def version(self, source: str) -> Version:
        """The version that a source means now.

        Raises ModelError: not such a source, no such model, alias or version, nothing where it should be, no registry.
        """
        if source not in self._found:
            self._found[source] = self._look_up(source)
        return self._found[source]

    def folder(self, source: str) -> Path:
        """A local folder of the version that a source means, downloaded if need be. Raises ModelError."""
        version = self.version(source)
        folder = version.folder(self.cache)
        return folder if folder.exists() else self._download(version, folder)

    @cached_property
    def client(self) -> MlflowClient:
        name = self.uri.removeprefix("sqlite:///")
        if name != self.uri and not Path(name).exists():
            raise ModelError(f"there is no registry yet at {self.uri}; {WAY_OUT}")
        return connect(self.uri)

    def _look_up(self, source: str) -> Version:
        from mlflow.exceptions import MlflowException

        match = SOURCE.fullmatch(source)
        if not match:
            raise ModelError(f"{source!r} names no version: write models:/NAME@ALIAS or models:/NAME/VERSION")
        name, alias, number = match.groups()
        try:
            model = self._model(name)
            version = self._version(model, alias, number)
            place = _resolved(self.client, version)
        except MlflowException as error:
            raise ModelError(f"{self.where} does not answer: {one_line(error)}") from error
        found = Version(name, str(version.version), place, version.run_id or "", dict(version.tags))
        if local := local_path(place):
            whole(local, found.source)
        return found

    def _model(self, name: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        there = [model.name for model in self.client.search_registered_models(max_results=1000)]
        raise ModelError(f"no model {name!r} in {self.where}{_near(name, there)}; {WAY_OUT}")

    def _version(self, model: Any, alias: str | None, number: str | None) -> Any:
        versions = {str(one.version): one for one in self.client.search_model_versions(f"name='{model.name}'")}
        if alias and alias.lower() == LATEST:
            number = max(versions, key=int, default=None)
        elif alias:
            number = model.aliases.get(alias)
            if number is None:
                said = _near(alias, [LATEST, *model.aliases])
                raise ModelError(f"model {model.name!r} has no alias {alias!r} in {self.where}{said}; set it in MLflow")
        if str(number) not in versions:
            there = ", ".join(sorted(versions, key=int)) or "none"
            raise ModelError(f"model {model.name!r} has no version {number} in {self.where}; there: {there}")
        return versions[str(number)]

    def _download(self, version: Version, folder: Path) -> Path:
        from mlflow.artifacts import download_artifacts

        aside = folder.with_name(f".{folder.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
        aside.mkdir(parents=True)
        try:
            try:
                found = download_artifacts(artifact_uri=version.place, dst_path=str(aside), tracking_uri=self.uri)
            except Exception as error:
                place = without_password(version.place)
                raise ModelError(f"{version.source}: {place} cannot be downloaded: {one_line(error)}") from error
            whole(Path(found), version.source)
            try:
                Path(found).rename(folder)
            except OSError:
                if not folder.exists():
                    raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return folder


def located(source: str, storage: Path) -> Path:
    """The folder of any source, a registered model among them. Raises ModelError."""
    registered = split_source(source)[0] == "registry"
    return Registry(storage).folder(source) if registered else model_folder(source, storage / "cache")


def local_path(place: str) -> Path | None:
    """The folder that a URI names, None where it is not one of this machine."""
    parts = urlsplit(place)
    return Path(url2pathname(parts.path)) if parts.scheme in ("", "file") else None


def _resolved(client: MlflowClient, version: Any) -> str:
    """Where a version's files are; those of a run stand below the run's artifacts."""
    place = client.get_model_version_download_uri(version.name, version.version)
    if not place.startswith("runs:/"):
        return place
    run, _, path = place.removeprefix("runs:/").partition("/")
    return f"{client.get_run(run).info.artifact_uri}/{path}"


def _near(name: str, names: list[str]) -> str:
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    asked = f"; did you mean {close[0]!r}?" if close else ""
    return f"{asked}; there: {', '.join(names[:20]) or 'none'}"
