"""Names and values as MLflow takes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.run.track_words import artifacts_of, clean, flat, link, without_password


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("train/loss", "train/loss"),
        ("lr (head)", "lr _head_"),
        ("//a/./b/../c/", "a/_/b/__/c"),
        ("accuracy@1:x", "accuracy_1_x"),
        ("", "_"),
    ],
)
def test_clean_gives_names_that_mlflow_takes(name: str, cleaned: str) -> None:
    assert clean(name) == cleaned
    assert clean(cleaned) == cleaned


def test_long_names_stay_apart() -> None:
    one, two = clean("a" * 300 + "1"), clean("a" * 300 + "2")
    assert len(one) == len(two) == 250
    assert one != two


def test_flat_names_nested_values_and_loses_none() -> None:
    nested = {"tune": {"kind": "top", "layers": [1, 2]}, "seed": None, "empty": {}, "on": True, "text": "y" * 6001}
    nested["students"] = {"a+": 1, "a*": 2}
    told = flat(nested)
    assert told.pop("text") == "y" * 6000
    assert told == {
        "tune.kind": "top",
        "tune.layers": "[1, 2]",
        "seed": "null",
        "empty": "{}",
        "on": "true",
        "students.a_": "1",
        "students.a__": "2",
    }


def test_passwords_are_hidden_and_paths_are_not() -> None:
    assert without_password("postgresql://me:secret@db/x down") == "postgresql://***@db/x down"
    assert without_password("sqlite:////tmp/a@b/mlflow.db") == "sqlite:////tmp/a@b/mlflow.db"


def test_links_replace_what_was_half_copied(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("whole")
    target.write_text("wh")
    for _ in range(2):
        link(str(source), str(target))
        assert target.read_text() == "whole"
    assert target.stat().st_ino == source.stat().st_ino


def test_files_of_runs_stand_beside_a_database_of_sqlite_and_where_a_server_says(tmp_path: Path) -> None:
    assert artifacts_of(f"sqlite:///{tmp_path}/mlflow.db") == (tmp_path / "mlartifacts").as_uri()
    assert artifacts_of("sqlite:///mlflow.db") == (Path.cwd() / "mlartifacts").as_uri()
    assert artifacts_of("http://localhost:5000") is None
