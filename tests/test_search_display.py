"""What a running search looks like: what is counted, what is left, what fits the terminal, what is said at the end."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.searching import METRIC, fill, search_of

from trimtab.metrics import Interval
from trimtab.search.board import ranked, table
from trimtab.search.final import Entry, Final
from trimtab.search.job import Search
from trimtab.search.record import records
from trimtab.search.verb import TuneResult
from trimtab.search_display import SearchLines, SearchScreen, Tally
from trimtab.search_ending import as_event, ending

PLAN = {"event": "search_plan", "time": 100.0, "trials": 4, "concurrent": 2, "have": 1}
RATE = "students.logconf.learning_rate"


def started(number: int, rate: float, at: float = 100.0) -> dict[str, Any]:
    return {"event": "trial_start", "time": at, "trial": number, "values": {RATE: rate}}


def ended(number: int, status: str, value: float | None, **more: Any) -> dict[str, Any]:
    objectives = None if value is None else [value]
    return {"event": "trial_end", "trial": number, "status": status, "objectives": objectives, "seconds": 2.0} | more


@pytest.fixture
def search(tmp_path: Path) -> Search:
    return search_of(tmp_path)


def told(search: Search, *events: dict[str, Any]) -> Tally:
    tally = Tally(search)
    for event in events:
        tally.hear(event)
    return tally


def test_earlier_trials_count_and_interrupted_ones_do_not(search: Search) -> None:
    tally = told(search, PLAN, started(1, 0.01), started(2, 0.1), ended(1, "done", 0.8), ended(2, "interrupted", None))
    assert tally.ended == 2
    assert tally.best().number == 1
    assert tally.headline(110.0).startswith("2 of 4 trials")
    assert f"best so far: {METRIC} 0.8000 (trial 1: learning_rate 0.01)" in tally.headline(110.0)


def test_the_time_left_follows_the_share_done_and_the_minutes(search: Search) -> None:
    half = {"event": "trial_result", "trial": 2, "progress": 0.5, "signal": 0.7}
    tally = told(search, PLAN, started(1, 0.01), started(2, 0.1), ended(1, "done", 0.8), half)
    assert tally.left(130.0) == pytest.approx(30 * 1.5 / 1.5), "one and a half of three took 30 s"
    spec = search.spec.model_copy(update={"budget": search.spec.budget.model_copy(update={"minutes": 0.75})})
    tally.search = Search(search.id, search.name, search.file, spec, search.raw, search.default)
    assert tally.left(130.0) == pytest.approx(15)
    assert told(search, PLAN).left(130.0) is None


def test_what_all_trials_share_is_expected_once(search: Search) -> None:
    shared = ended(1, "done", 0.8) | {"seconds": 60.0}
    tally = told(search, PLAN, started(1, 0.01), shared, started(2, 0.1, at=160.0))
    assert tally.left(160.0) == pytest.approx(60 * 2 / 1), "no other trial to judge by"
    tally.hear(ended(2, "done", 0.7) | {"seconds": 8.0})
    assert tally.left(168.0) == pytest.approx(8 * 1 / PLAN["concurrent"])


def test_the_best_follows_the_mode(tmp_path: Path) -> None:
    search = search_of(tmp_path, mode="min")
    assert told(search, PLAN, ended(1, "done", 0.8), ended(2, "done", 0.3), ended(3, "pruned", None)).best().number == 2


@pytest.mark.parametrize(("width", "height"), [(160, 40), (80, 12)])
def test_the_table_fits_the_terminal_and_shows_running_trials_then_the_best(
    search: Search, width: int, height: int
) -> None:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    screen = SearchScreen(console, search=search)
    screen(PLAN | {"trials": 30})
    for number in range(20):
        screen(started(number, 0.001 * (number + 1)))
        screen(ended(number, "done", number / 20) if number != 3 else ended(number, "failed", None, error="no"))
    screen(started(21, 0.5))
    with console.capture() as caught:
        console.print(screen.drawn())
    lines = caught.get().splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    rows = [line.split() for line in lines]
    first = next(i for i, row in enumerate(rows) if row[:2] == ["▸", "21"])
    assert rows[first + 1][:2] == ["✓", "19"]


def test_plain_lines_say_each_trial_once_and_then_the_stages_of_the_final(search: Search) -> None:
    out = io.StringIO()
    say = SearchLines(out, search=search)
    stage = {"stage_id": "train-1", "label": "tuned / train", "stage": "train", "have": False}
    own_stage = {"event": "stage_start", "stage_id": "other", "time": 1.0}
    for event in (PLAN, started(1, 0.01), own_stage, ended(1, "failed", None, error="StageError: out\nof luck")):
        say(event)
    for event in ({"event": "plan", "stages": [stage]}, {"event": "stage_start", "stage_id": "train-1", "time": 1.0}):
        say(event)
    text = out.getvalue()
    assert "start    trial 1  learning_rate 0.01" in text
    assert "failed   trial 1  2.0 s    StageError: out\n" in text
    assert "final evaluation" in text
    assert "start  tuned / train" in text
    assert "other" not in text


def result(search: Search, final: Final | None, importance: dict[str, dict[str, float]], why: str) -> TuneResult:
    rows = table(ranked(records(fill(search, 3)), search.spec.modes), search.spec)
    return TuneResult(search, why, 3, rows, importance, final, search.folder / "report.html", 5.0, ["a warning"])


def test_the_end_says_verdict_importance_truth_and_where_everything_is(search: Search) -> None:
    gain = Interval(0.03, 0.01, 0.05)
    entries = [Entry("default", {}, None), Entry("tuned", {RATE: 0.1}, 2, {"accuracy": gain}, {"accuracy": gain})]
    final = Final([7], 0, 50, "accuracy", ["accuracy"], entries, "beats", "On test, it wins.", "/x/best.yaml", "/x/r")
    whole = result(search, final, {METRIC: {RATE: 0.75, "students.logconf.tune.l2": 0.25}}, "trials")
    text = "\n".join(ending(whole, "tune/a.yaml"))
    for said in (
        "tune/a.yaml: 3 trials ended in 5.0 s; the trials of its budget are done",
        f"importance for {METRIC}: learning_rate 75%, l2 25%",
        "On test, it wins.",
        "trimtab run /x/best.yaml",
        f"trimtab dashboard --storage {search.storage}",
    ):
        assert said in text
    assert as_event(whole)["event"] == "done"
    assert as_event(whole)["final"]["verdict"] == "beats"
    assert as_event(whole)["truth_rows"] == search.spec.truth_budget


def test_a_search_that_gave_up_says_why_and_claims_nothing(search: Search) -> None:
    whole = result(search, None, {METRIC: {}}, "3 trials failed alike: StageError: no")
    text = "\n".join(ending(whole, "tune/a.yaml"))
    assert "gave up: 3 trials failed alike" in text
    assert "cannot be told" in text
    assert "nothing to compare" in text
    assert as_event(whole)["event"] == "error"
