"""What a job names on this machine, wherever in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.test_files import JOBS, overrides

from trimtab.cluster.inputs import named
from trimtab.cluster.submission import prepared, read


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (
        "data/a.jsonl",
        "data/b.jsonl",
        "data/pairs.csv",
        "whole/train.jsonl",
        "whole/deep/test.csv",
        "said.toml",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    for name in ("whole/.gitignore", "whole/deep/.rayignore"):
        (tmp_path / name).write_text("*")
    (tmp_path / "whole" / ".#train.jsonl").symlink_to("somebody@this-machine.1234")
    for name in ("whole/.git/pack", "whole/__pycache__/x.pyc", "whole/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    return tmp_path


def found(raw: dict[str, Any]) -> dict[str, tuple[str, list[str]]]:
    return {one.field: (one.what, [str(path.relative_to(Path.cwd())) for path in one.files()]) for one in named(raw)}


@pytest.mark.parametrize("source", ["builtin:valence", "owner/name", "data/nothing.jsonl", "models:/reward@champion"])
def test_what_does_not_lie_here_is_not_named(here: Path, source: str) -> None:
    model = source if ":" in source else "owner/name"
    assert found({"kind": "weak_to_strong", "task": {"source": source}, "supervisor": {"model": model}}) == {}


def test_data_are_files_families_of_files_folders_and_lists(here: Path) -> None:
    task = {"source": ["data/a.jsonl", "data/pairs"], "test": "whole"}
    assert found({"kind": "weak_to_strong", "task": task}) == {
        "task.source.0": ("data", ["data/a.jsonl"]),
        "task.source.1": ("data", ["data/pairs.csv"]),
        "task.test": ("data", ["whole/deep/test.csv", "whole/train.jsonl"]),
    }


def test_models_are_found_in_every_part_and_as_a_bare_name(here: Path) -> None:
    parts = {"supervisor": {"model": "./whole"}, "students": {"one": {"model": {"source": f"{here}/whole"}}}}
    fields = found({"kind": "weak_to_strong", **parts})
    assert {field: what for field, (what, _) in fields.items()} == {
        "supervisor.model": "model",
        "students.one.model.source": "model",
    }


def test_texts_of_a_debate_travel(here: Path) -> None:
    raw = yaml.safe_load((Path(__file__).parents[2] / "jobs" / "debate.yaml").read_text())
    raw.setdefault("protocol", {"kind": "sequential"})["prompts"] = "said.toml"
    assert found(raw) == {"protocol.prompts": ("texts", ["said.toml"])}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_shipped_jobs_travel_as_one_file(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parents[1])
    said = [*overrides(path, tmp_path), "compute.storage=/mnt/x"]
    sent = prepared(read(path, said), shared=[tmp_path])
    assert list(sent.parcel.files) == [f"jobs/{path.name}"]
    assert sent.command[5:-1] == said
