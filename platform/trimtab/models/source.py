"""Where a model's files are: hub id, local folder, builtin:NAME, artifact:STAGE-KEY.

`models:/NAME@ALIAS` and `models:/NAME/VERSION` stand in a registry. Jobs and serve files put the folder of the version
in their place (`run/registry.py`), so that nothing below sees an alias that may move.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from trimtab.errors import ModelError

MEGABYTE = 1 << 20
REGISTRY = "models:/"


def split_source(source: str) -> tuple[str, str]:
    """(kind, name): kind is builtin, artifact, registry, folder or hub."""
    if source.startswith(REGISTRY):
        return "registry", source.removeprefix(REGISTRY)
    head, _, tail = source.partition(":")
    if head in ("builtin", "artifact") and tail:
        return head, tail
    if source.startswith((".", "/", "~")) or Path(source).expanduser().is_dir():
        return "folder", source
    return "hub", source


def model_folder(source: str, cache: Path, *, revision: str | None = None) -> Path:
    """A local folder that from_pretrained accepts. Raises ModelError with the way out."""
    kind, name = split_source(source)
    if kind == "builtin":
        from trimtab.models.builtin import builtin_folder

        return builtin_folder(name, cache / "models")
    if kind == "artifact":
        if problem := artifact_problem(cache.parent / "artifacts", name):
            raise ModelError(f"model {source!r}: {problem}")
        return whole(cache.parent / "artifacts" / name / "model", source)
    if kind == "registry":
        raise ModelError(f"model {source!r}: put the folder in its place that trimtab.run.registry finds")
    return whole(Path(name).expanduser(), source) if kind == "folder" else _from_hub(name, revision)


def artifact_problem(artifacts: Path, name: str) -> str | None:
    """Why a stage's output is no model: it is not there, or its name or a link leads out of the storage.

    The name comes from a job file, which may be somebody else's.
    """
    folder = artifacts.expanduser() / name / "model"
    if Path(name).name != name or not folder.resolve().is_relative_to(artifacts.expanduser().resolve()):
        return f"artifact:{name} leads out of {artifacts}; give a folder by its path"
    return None if (folder / "config.json").exists() else f"no model of stage {name!r} under {artifacts}"


def whole(folder: Path, source: str) -> Path:
    """The folder. Raises ModelError where it holds no model."""
    if not (folder / "config.json").exists():
        raise ModelError(f"model {source!r}: no config.json in {folder}; give a folder written by save_pretrained")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"model {source!r}: no .safetensors file in {folder}; save it with safe_serialization=True")
    return folder


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
    try:
        return whole(Path(snapshot_download(name, revision=revision, allow_patterns=wanted)), name)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(
            f"model {name!r}: not a local folder, and not to be had from the hub ({type(error).__name__}); "
            "check the id, go online, or give a folder or builtin:smollm2-135m"
        ) from error


def source_problem(source: str) -> str | None:
    """What can be seen to be wrong with a model source without loading anything."""
    kind, name = split_source(source)
    if kind == "builtin":
        return _builtin_problem(name)
    if kind == "folder":
        return _folder_problem(Path(name).expanduser())
    if kind == "hub" and name.count("/") > 1:
        return f"{name!r} is neither an existing folder nor a hub id of the form owner/name"
    offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub")
    if kind == "hub" and offline and not (hub.expanduser() / f"models--{name.replace('/', '--')}").exists():
        return f"{name!r} is not in the local hub cache and HF_HUB_OFFLINE is set; use a folder or builtin:smollm2-135m"
    return None


def _builtin_problem(name: str) -> str | None:
    from trimtab.models.builtin import KNOWN, locate

    if name not in KNOWN:
        return f"no built-in model {name!r}; allowed: {', '.join(sorted(KNOWN))}"
    try:
        locate(KNOWN[name])
    except ModelError as error:
        return str(error)
    return None


def _folder_problem(folder: Path) -> str | None:
    try:
        whole(folder, str(folder))
    except ModelError as error:
        return str(error)
    return None


def folder_hash(folder: Path) -> str:
    """Names and content of every file; of one above 256 MB its size and 256 evenly spread megabytes."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}:{size}:".encode())
        last = max(0, size - MEGABYTE)
        with path.open("rb") as file:
            for place in range(0, size, MEGABYTE) if size <= 256 * MEGABYTE else (last * i // 255 for i in range(256)):
                file.seek(place)
                digest.update(file.read(MEGABYTE))
    return digest.hexdigest()[:16]


def weights_hash(folder: Path) -> str:
    """A hash of the configuration and every byte of the weights."""
    digest = hashlib.sha256()
    for path in (folder / "config.json", *sorted(folder.glob("*.safetensors"))):
        with path.open("rb") as file:
            digest.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()[:16]
