"""What a spec contributes to a key: its fields, and the content of the files and folders it names."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from trimtab.alignment import PromptSpec
from trimtab.errors import ModelError
from trimtab.methods.debates._wording import Worded
from trimtab.models.source import folder_hash, split_source
from trimtab.parts import ModelSpec, TaskSpec
from trimtab.spec import Spec


def identity(value: Any) -> Any:
    """The value in plain types; a changed file behind a spec changes it, wherever the file lies."""
    if isinstance(value, dict):
        return {k: identity(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [identity(v) for v in value]
    if not isinstance(value, Spec):
        return value
    fields = {name: identity(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, TaskSpec | PromptSpec):
        fields |= {name: _content(fields[name]) for name in ("source", "test") if fields[name]}
    if isinstance(value, ModelSpec):
        fields["source"] = _weights(value.source)
    if isinstance(value, Worded):
        fields["prompts"] = value.wording.model_dump()
    return fields


def _weights(source: str) -> str:
    """A folder's content. Raises ModelError for an alias, which may mean other weights when the stage runs."""
    kind, _ = split_source(source)
    if kind == "registry":
        raise ModelError(f"model {source!r}: put the folder in its place that trimtab.run.registry finds")
    return folder_hash(Path(source).expanduser()) if kind == "folder" else source


def _content(source: str | list[str]) -> Any:
    if isinstance(source, list):
        return [_content(one) for one in source]
    path = Path(source).expanduser()
    if path.is_dir():
        return folder_hash(path)
    files = [path] if path.is_file() else sorted(path.parent.glob(f"{path.name}.*")) if path.parent.is_dir() else []
    if not files or source.startswith("builtin:"):
        return source
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]
