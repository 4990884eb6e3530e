"""The shipped searches as `trimtab tune FILE --smoke` runs them, on the real model: what a user is promised."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trimtab import verbs
from trimtab.data.builtin import BUILTIN
from trimtab.load import load_job
from trimtab.run.artifact import PlanRunner
from trimtab.run.joining import ray_at
from trimtab.run.log import read_log
from trimtab.search.space import Space
from trimtab.search.verb import TuneResult

pytestmark = pytest.mark.ray
TUNE = Path(__file__).parents[2] / "tune"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, mlflow_uri: str) -> Iterator[Path]:
    """One storage for all searches, which find in it what another one made; one cluster, and one place to track."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
        ray = ray_at("local")
        yield tmp_path_factory.mktemp("searches")
        ray.shutdown()


@pytest.fixture(scope="module")
def words(storage: Path) -> str:
    """Every fourth word of the built-in task, as an override: nothing but the states of frozen layers is cheaper."""
    task, path = BUILTIN["valence"], storage / "words.jsonl"
    rows = [row for _, row in task.rows(task.file())][::4]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"task.source={path}"


def tried(storage: Path, name: str, *overrides: str) -> TuneResult:
    """A search in a trial run, and what holds for all of them."""
    search = verbs.search(TUNE / f"{name}.yaml", [f"compute.storage={storage}", *overrides], smoke=True)
    found = verbs.tune(search)
    assert (found.why, found.ran) == ("trials", search.spec.budget.trials)
    trials = leaderboard(found)
    assert len(found.table) == 1 + len(trials) == 1 + search.spec.budget.trials
    assert (trials[0]["rank"], trials[0]["status"]) == (1, "done")
    assert {one["status"] for one in trials} <= {"done", "pruned"}
    assert all(metric in trials[0]["metrics"] for metric in search.spec.metrics)
    assert next(one["values"] for one in trials if one["trial"] == 0) == Space(search).default()
    judged(found)
    ended = stages(storage, "*")
    assert max(Counter(event["stage_id"] for event in ended).values()) == 1, "what is shared is computed once"
    return found


def judged(found: TuneResult) -> None:
    """The last word has an interval, a page with plots, the rows of truth on it, and a job file that finds all."""
    spec, final = found.search.spec, found.final
    assert final.seeds == list(spec.final.seeds) and final.verdict in ("beats", "trades", "ties", "loses")
    gains = [gain for tuned in final.entries[1:] for gain in tuned.against_default.values()]
    assert len(gains) == len(final.metrics) * (len(final.entries) - 1)
    assert all(gain.lo <= gain.mean <= gain.hi for gain in gains)
    assert "95% interval" in final.words and all(f"{what} " in final.words for what in final.metrics)
    page, best = found.page.read_text(), Path(final.best)
    assert final.words in page
    assert len(re.findall(r'<div class="plot" id="plot\d+">', page)) >= 2 + len(spec.space)
    steered = f"the truth of {spec.truth_budget} of" if spec.truth_budget else "no row of truth"
    assert steered in page.lower() and steered in best.read_text().lower()
    job = load_job(best)
    runner = PlanRunner(job.compute)
    job.pipeline(runner)
    assert runner.nodes and runner.pending == []


def leaderboard(found: TuneResult) -> list[dict[str, Any]]:
    """The trials, the best first."""
    return json.loads((found.search.folder / "leaderboard.json").read_text())["trials"]


def stages(storage: Path, run: str) -> list[dict[str, Any]]:
    """The stages that ran to their end in these runs."""
    events = [event for folder in (storage / "runs").glob(run) for event in read_log(folder)]
    return [event for event in events if event["event"] == "stage_end" and event["status"] == "done"]


def of_trials(found: TuneResult) -> list[str]:
    """What the stages that trials began are called, but for the seed."""
    runs = (found.search.storage / "runs").glob(f"{found.search.id}-t*")
    events = [event for folder in runs for event in read_log(folder) if event["event"] == "stage_start"]
    return [event["label"].removeprefix("seed 0 / ") for event in events]


def test_the_method_is_a_dimension(storage: Path, words: str) -> None:
    found = tried(storage, "objectives", words)
    student = "students.tuned.objective"
    tested = [one["values"] for one in leaderboard(found)]
    assert len({values[f"{student}.kind"] for values in tested}) > 2
    assert all((f"{student}.aux_coef" in values) == (values[f"{student}.kind"] == "logconf") for values in tested)
    assert not [label for label in of_trials(found) if label.startswith(("evaluate", "report", "train ceiling"))]
    assert [len(one["ran"]) for one in leaderboard(found)].count(2) >= 4, "a probe and its validation, no more"


def test_trainings_are_watched_while_they_run(storage: Path, words: str) -> None:
    found = tried(storage, "logconf", words)
    assert all(one["early"].keys() == {"loss", "grad_norm"} for one in leaderboard(found))
    trained = {label for label in of_trials(found) if label.startswith("train ")}
    assert trained == {"train supervisor", "train student.logconf"}, "neither the ceiling nor the other student"


def test_reward_and_distance_make_a_front(storage: Path) -> None:
    found = tried(storage, "genarm")
    assert found.final.metrics == ["gold", "kl"]
    begun = of_trials(found)
    assert begun.count("samples of guided.genarm, validation") == 2


def test_a_guide_on_text_has_a_best_threshold(storage: Path) -> None:
    found = tried(storage, "nudging")
    begun = of_trials(found)
    assert begun.count("samples of guided.nudging, validation") == 2


def test_weak_reward_steers_what_a_policy_is_trained_by(storage: Path) -> None:
    found = tried(storage, "softdpo")
    begun = of_trials(found)
    trained = [label for label in begun if label.startswith("train ")]
    assert sorted(trained) == ["train student.tuned", "train student.tuned", "train supervisor"]
    gold = [label for label in begun if label.startswith("gold")]
    assert gold == ["gold reward of completions"] * len(gold), "no trial is told what gold says of its samples"
