"""Searches over small jobs, without a search file."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tests.conftest import Tiny, sentence

from trimtab.data.tables import write_jsonl
from trimtab.search.job import Search, made
from trimtab.search.spec import SearchSpec

STUDENT = "students.a"


def job(**student: Any) -> dict[str, Any]:
    """Probes of a network that is only named."""
    probe = {"model": "builtin:smollm2-135m", "tune": {"kind": "probe", "steps": 40}, "learning_rate": 0.01}
    return {
        "kind": "weak_to_strong",
        "task": {"source": "builtin:valence"},
        "supervisor": probe,
        "ceiling": probe,
        "students": {"a": probe | student},
    }


def search_over(space: dict[str, Any], storage: Path, raw: dict[str, Any] | None = None, **fields: Any) -> Search:
    """A search as its file would say it."""
    usual = {"job": "job.yaml", "space": space, "metric": "student.a/agreement", "validation": 40}
    spec = SearchSpec.model_validate(usual | fields)
    raw = raw or job()
    raw["validation"] = {"rows": spec.validation, "truth": spec.truth_budget}
    raw["compute"] = {"backend": "inline", "storage": str(storage)} | raw.get("compute", {})
    default, mistakes = made(raw, {}, spec.seeds, name="tiny")
    assert default, mistakes
    return Search("tiny-0001", "tiny", Path("tiny.yaml"), spec, raw, default)


def tiny_job(tiny: Tiny, folder: Path, **student: Any) -> dict[str, Any]:
    """Probes on the tiny network, its rows in `folder`."""
    draw = random.Random(1)
    rows = [dict(zip(("text", "label"), sentence(draw), strict=True), id=f"s{i}") for i in range(200)]
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "rows.jsonl", rows)
    model = {"source": str(tiny.model), "dtype": "float32"}
    probe = {"model": model, "tune": {"kind": "probe", "steps": 40}, "learning_rate": 0.01}
    raw = job(**student)
    raw["task"]["source"] = str(folder / "rows.jsonl")
    raw["split"] = {"supervise": 40, "transfer": 64, "test": 40}
    weak = probe | {"model": model | {"layers": 2}}
    return raw | {"supervisor": weak, "ceiling": probe, "students": {"a": probe | student}}
