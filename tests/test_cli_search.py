"""Search files on the command line: check, and a search that may not start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trimtab.cli import app

JOB = Path(__file__).parents[1] / "jobs" / "probe.yaml"
FIELD = "students.logconf.objective.aux_coef"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIMTAB_STORAGE", str(tmp_path / "storage"))
    path = tmp_path / "a.yaml"
    path.write_text(f"job: {JOB}\nspace:\n  {FIELD}: {{uniform: [0, 0.9]}}\nmetric: student.logconf/agreement\n")
    return path


def trimtab(*arguments: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_check_knows_search_files(file: Path) -> None:
    code, out, _ = trimtab("check", file)
    assert code == 0
    assert "fine (search a-" in out
    code, out, _ = trimtab("check", file, "--json")
    assert json.loads(out)["kind"] == "search"


def test_check_tells_every_mistake_of_a_search_file(file: Path) -> None:
    code, out, err = trimtab("check", file, "budget.trals=4", "metric=student.logconf/accuracy", "--json")
    assert code == 2
    problems = json.loads(out)["problems"]
    assert len(problems) == 2
    assert all(problem in err for problem in problems)
    assert problems[0].startswith("override budget.trals=4: budget.trals: unknown key; did you mean 'trials'?")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["space={students.logcnf.tune.l2: {uniform: [0, 1]}}"], "did you mean 'logconf'?"),
        (["--method", "logconf"], "is missing; allowed"),
    ],
)
def test_tune_refuses_before_anything_is_written(file: Path, arguments: list[str], said: str) -> None:
    code, _, err = trimtab("tune", file, *arguments)
    assert code == 2
    assert said in err
    assert not (file.parent / "storage").exists()
