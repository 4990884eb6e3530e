"""The final evaluation: winner and default paired on fresh seeds, what is said of it, and the file that is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import Tiny

from trimtab.load import load_job
from trimtab.metrics import Interval
from trimtab.run.artifact import PlanRunner
from trimtab.search.final import Entry, Final, _verdict, concluded, paired_rows, words
from trimtab.search.job import Search
from trimtab.search.load import load_search
from trimtab.search.record import Measured, Record, Told
from trimtab.search.winner import write_leaderboard

JOB = """\
kind: weak_to_strong
task: {{source: {rows}}}
split: {{supervise: 40, transfer: 50, test: 50}}
supervisor: {{model: {{source: {model}, layers: 1}}, tune: {{kind: probe, steps: 30}}, learning_rate: 0.01}}
ceiling: &strong {{model: {model}, tune: {{kind: probe, steps: 30}}, learning_rate: 0.01}}
students:
  naive: *strong
  other: {{<<: *strong, objective: {{kind: xent, hard: true}}}}
compute: {{backend: inline, storage: {storage}}}
register: {{student.naive: best}}
"""
FIELD = "students.naive.learning_rate"
SEARCH = f"""\
job: job.yaml
space:
  {FIELD}: {{loguniform: [1.0e-6, 0.1]}}
metric: student.naive/agreement
validation: 20
truth_budget: 8
final: {{seeds: [7, 8]}}
"""


def interval(mean: float, lo: float, hi: float) -> Interval:
    return Interval(mean, lo, hi)


def entry(name: str, **gains: tuple[float, float, float]) -> Entry:
    told = {what: Interval(*gain) for what, gain in gains.items()}
    scores = {what: Interval(0.5 + gain.mean, 0, 1) for what, gain in told.items()}
    return Entry(name, {}, None if name == "default" else 3, scores, told)


def final(*entries: Entry, metrics: list[str], verdict: Any) -> Final:
    return Final([7, 8], 0, 50, metrics[0], metrics, [*entries], verdict, "", "", "")


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ({"accuracy": (0.03, 0.01, 0.05)}, "beats"),
        ({"accuracy": (0.03, 0.0, 0.05)}, "ties"),
        ({"accuracy": (-0.03, -0.05, -0.01)}, "loses"),
        ({"kl": (-1, -2, -0.5)}, "beats"),
        ({"gold": (0.2, 0.1, 0.3), "kl": (0.1, -0.1, 0.3)}, "beats"),
        ({"gold": (0.2, 0.1, 0.3), "kl": (2, 1, 3)}, "trades"),
        ({"gold": (0.0, -0.1, 0.1), "kl": (2, 1, 3)}, "loses"),
    ],
)
def test_a_verdict_says_no_more_than_the_intervals(gains: dict[str, tuple[float, float, float]], said: str) -> None:
    assert _verdict(entry("tuned", **gains), list(gains)) == said


def test_the_words_give_both_numbers_the_interval_and_what_it_is_over() -> None:
    default = Entry("default", {}, None, {"accuracy": Interval(0.5, 0, 1)})
    told = words(final(default, entry("tuned", accuracy=(0.03, 0.01, 0.05)), metrics=["accuracy"], verdict="beats"))
    assert told == (
        "On test, tuned beats the untuned default: accuracy 0.530 against 0.500, difference +0.030, 95% interval "
        "+0.010 to +0.050 (2 fresh seeds, 50 test rows each)."
    )
    tie = words(final(default, entry("tuned", accuracy=(0.0, 0.0, 0.0)), metrics=["accuracy"], verdict="ties"))
    assert "says of every test row what the untuned default says, so they tie" in tie


def test_rows_are_paired_by_id_and_only_those_that_all_have_count() -> None:
    default = [{"gold": {"a": 1.0, "b": 2.0, "c": 3.0}}]
    tuned = [{"gold": {"c": 30.0, "a": 10.0}}]
    (rows_NM,) = paired_rows([default, tuned], "gold")
    assert np.array_equal(rows_NM, [[1, 10], [3, 30]])


def search_of(tiny: Tiny, folder: Path) -> Search:
    rows = [json.loads(line) for part in (tiny.labelled, tiny.test) for line in (part / "rows.jsonl").open()]
    rows += [row | {"id": f"{row['id']}x", "text": f"{row['text']} lamp"} for row in rows]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    storage, rows_file = folder / "storage", folder / "rows.jsonl"
    (folder / "job.yaml").write_text(JOB.format(rows=rows_file, model=tiny.model, storage=storage))
    (folder / "search.yaml").write_text(SEARCH)
    return load_search(folder / "search.yaml")


def record(number: int, rate: float, value: float) -> Record:
    told = Told({FIELD: rate}, metrics={"student.naive/agreement": Measured(value, value - 0.1, value + 0.1, 20)})
    return Record(number, "done", told, (value,))


def test_winner_and_default_are_compared_afresh_and_the_winner_s_file_finds_every_stage(
    tiny: Tiny, tmp_path: Path
) -> None:
    search = search_of(tiny, tmp_path)
    events: list[dict[str, Any]] = []
    found = concluded(search, [record(0, 0.01, 0.8), record(1, 1e-6, 0.9)], events.append)
    default, tuned = found.entries
    assert (default.name, tuned.name, tuned.trial, tuned.values) == ("default", "tuned", 1, {FIELD: 1e-6})
    assert (found.metric, found.seeds, found.truth_rows, found.rows) == ("accuracy", [7, 8], 8, 50)
    gain = tuned.against_default["accuracy"]
    assert gain.mean == pytest.approx(tuned.scores["accuracy"].mean - default.scores["accuracy"].mean)
    assert gain.lo <= gain.mean <= gain.hi
    assert json.loads((search.folder / "final.json").read_text())["words"] == found.words
    started = [event["label"] for event in events if event["event"] == "stage_start"]
    assert sum("/ train " in label for label in started) == 2 * 5, "what winner and default share is trained once"
    assert [label for label in started if label.endswith("report")] == ["tuned / report"]
    assert Path(found.report).exists()

    best = load_job(found.best)
    runner = PlanRunner(best.compute)
    last = best.pipeline(runner)
    assert runner.pending == []
    assert last.folder / "report.html" == Path(found.report)
    assert best.pipeline.students["naive"].learning_rate == 1e-6
    assert best.register == {}
    assert "# The truth of 8 of 20 rows set aside was free to steer this search." in Path(found.best).read_text()

    again: list[dict[str, Any]] = []
    assert concluded(search, [record(0, 0.01, 0.8), record(1, 1e-6, 0.9)], again.append) == found
    assert [event for event in again if event["event"] == "stage_start"] == []


def test_a_default_that_wins_ties_with_itself(tiny: Tiny, tmp_path: Path) -> None:
    found = concluded(search_of(tiny, tmp_path), [record(0, 0.01, 0.9)])
    assert found.verdict == "ties"
    assert found.entries[1].against_default["accuracy"] == Interval(0, 0, 0)


def test_without_a_finished_trial_there_is_nothing_to_conclude(tiny: Tiny, tmp_path: Path) -> None:
    assert concluded(search_of(tiny, tmp_path), [Record(0, "failed", Told({}))]) is None


def test_the_leaderboard_is_written_best_first_with_the_rows_of_truth(tiny: Tiny, tmp_path: Path) -> None:
    search = search_of(tiny, tmp_path)
    trials = [record(0, 0.01, 0.8), Record(1, "failed", Told({FIELD: 1.0}, error="no")), record(2, 0.02, 0.9)]
    said = json.loads(write_leaderboard(search, trials, {}).read_text())
    assert [(one["rank"], one["trial"]) for one in said["trials"]] == [(1, 2), (2, 0), (None, 1)]
    assert (said["truth_rows"], said["validation_rows"]) == (8, 20)
