"""MLflow's names, limits and settings, and how to reach a server or a local store."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from mlflow import MlflowClient

Event = dict[str, Any]
NAME, PARAM, TAG, DIGEST = 250, 6000, 5000, 36


def clean(name: str) -> str:
    """`name` as MLflow takes it for a metric, parameter or tag: letters, digits, `_-. /`, no odd paths, at most 250."""
    parts = [re.sub(r"[^\w.\- ]", "_", part) for part in str(name).split("/")]
    parts = ["_" * len(part) if part in (".", "..") else part for part in parts if part]
    return shortened("/".join(parts) or "_", NAME)


def shortened(text: str, limit: int) -> str:
    """`text`, or its start and a hash of the whole when it is longer than `limit`."""
    return text if len(text) <= limit else f"{text[: limit - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def flat(value: Any, name: str = "") -> dict[str, str]:
    """Nested dicts as dotted names and text; lists as JSON; long values cut at MLflow's 6000 characters."""
    if isinstance(value, Mapping) and value:
        found: dict[str, str] = {}
        for key, inner in value.items():
            for own_name, text in flat(inner, f"{name}.{key}" if name else str(key)).items():
                free_name = own_name
                while free_name in found:
                    free_name = shortened(f"{free_name}_", NAME)
                found[free_name] = text
        return found
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return {clean(name): text[:PARAM]} if name else {}


def ms(event: Event) -> int:
    return int(event.get("time", 0) * 1000)


def one_line(error: Exception) -> str:
    return short(f"{type(error).__name__}: {error}")


def short(text: str) -> str:
    return shortened(without_password(" ".join(text.split())), 300)


def without_password(text: str) -> str:
    """`text` with the user part of every address in it hidden."""
    return re.sub(r"://[^/@\s]+@", "://***@", text)


def quiet() -> None:
    """Settings that MLflow reads from the environment; what the user has set stays."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    # Retrying is the replay's business: a retried request whose answer got lost would create a run twice.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    for name in ("alembic", "mlflow"):
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.WARNING))


def connect(uri: str) -> MlflowClient:
    """A client; a SQLite file that is not there yet appears whole, or a kill would leave one no migration can mend."""
    quiet()
    from mlflow import MlflowClient

    path = sqlite_file(uri)
    if path and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                aside = path.with_name(f".{path.name}.new")
                aside.unlink(missing_ok=True)
                aside.touch()  # SQLite itself would let its owner alone write
                MlflowClient(tracking_uri=f"sqlite:///{aside}")
                aside.replace(path)
    return MlflowClient(tracking_uri=uri)


def default_uri(storage: Path) -> str:
    """MLFLOW_TRACKING_URI, or a SQLite file in the storage folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(storage).resolve()}/mlflow.db"


def artifacts_of(uri: str) -> str | None:
    """Where a new experiment keeps its files: beside a SQLite file, and not in whichever folder the process is in."""
    file = sqlite_file(uri)
    return (file.resolve().parent / "mlartifacts").as_uri() if file else None


def sqlite_file(uri: str) -> Path | None:
    """The file of a store that is one."""
    from sqlalchemy import make_url

    name = make_url(uri).database if uri.startswith("sqlite:") else None
    return Path(name) if name else None


def experiment_id(client: MlflowClient, name: str, place: str | None) -> str:
    """The id of the experiment, made if the server has none of this name; TrimtabError when it was deleted there."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=place)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return experiment_id(client, name, place)
    if found.lifecycle_stage != "active":
        way_out = f"bring it back (mlflow experiments restore -x {found.experiment_id}) or set MLFLOW_EXPERIMENT_NAME"
        raise TrimtabError(f"MLflow's experiment {name} was deleted: {way_out}")
    return found.experiment_id


def link(source: str, target: str) -> None:
    """A hard link, or a copy where the file system has none; a whole target stays."""
    if os.path.exists(target):
        if os.path.getsize(target) == os.path.getsize(source):
            return
        os.remove(target)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
