"""What a job names on this machine: data, models and texts, each with its place in the file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trimtab.alignment import PromptSpec
from trimtab.load import PIPELINES
from trimtab.methods.debates._wording import Worded
from trimtab.mistakes import Loc, typed
from trimtab.models.source import split_source
from trimtab.parts import ModelSpec, TaskSpec
from trimtab.search.job import get

LEFT = (".git", ".venv", "venv", ".trimtab", "mlruns", "__pycache__", ".pytest_cache", ".ruff_cache", "node_modules")
"""Folders that never travel."""
WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pyc")
"""Files that never travel."""
RULES = (".gitignore", ".rayignore")
"""Nor do these, by which Ray would leave out files beside them."""


@dataclass(frozen=True)
class Named:
    """Something on this machine that a field of the job names."""

    loc: Loc
    what: Literal["data", "model", "texts", "checkpoint"]
    text: str

    @property
    def field(self) -> str:
        return ".".join(map(str, self.loc))

    @property
    def travels(self) -> bool:
        """Weights do not."""
        return self.what in ("data", "texts")

    @property
    def path(self) -> Path:
        """Where it lies; the name of a family of files, such as data/reviews of data/reviews.csv, has no such file."""
        return Path(os.path.abspath(Path(self.text).expanduser()))

    def files(self) -> list[Path]:
        """Every file of it that can travel; a folder's with all that lies below."""
        if self.path.is_dir():
            return sorted(below(self.path))
        return [self.path] if self.path.is_file() else _family(self.path)


def named(raw: Mapping[str, Any]) -> list[Named]:
    """What a job's mapping names that lies on this machine."""
    return [one for one in _said(raw) if _is_here(one)]


def _said(raw: Mapping[str, Any]) -> Iterator[Named]:
    for loc, spec, node in typed(PIPELINES[raw["kind"]], dict(raw)):
        if issubclass(spec, ModelSpec):
            whole = isinstance(node, dict)
            yield Named((*loc, "source") if whole else loc, "model", str(node.get("source") if whole else node))
        elif isinstance(node, dict) and issubclass(spec, TaskSpec | PromptSpec):
            for key in ("source", "test"):
                yield from _texts((*loc, key), node.get(key))
        elif isinstance(node, dict) and issubclass(spec, Worded) and node.get("prompts"):
            yield Named((*loc, "prompts"), "texts", str(node["prompts"]))

    resume = get(raw, "compute.resume")
    if resume not in (None, "auto", "never", "required"):
        yield Named(("compute", "resume"), "checkpoint", str(resume))


def _texts(loc: Loc, value: Any) -> Iterator[Named]:
    for i, one in enumerate(value) if isinstance(value, list) else ():
        yield Named((*loc, i), "data", str(one))
    if isinstance(value, str):
        yield Named(loc, "data", value)


def _is_here(one: Named) -> bool:
    if one.what == "model":
        return split_source(one.text)[0] == "folder"
    return not one.text.startswith("builtin:") and (one.path.exists() or bool(_family(one.path)))


def _family(path: Path) -> list[Path]:
    return sorted(p for p in path.parent.glob(f"{path.name}.*") if p.is_file()) if path.parent.is_dir() else []


def below(folder: Path) -> Iterator[Path]:
    """The files of a folder, but for what never travels, and links that lead to no file."""
    for at, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in LEFT]
        paths = (Path(at, name) for name in files if not name.endswith(WEIGHTS) and name not in RULES)
        yield from (path for path in paths if path.is_file())
