"""The page of a search: what it says of trials of every kind, and that nothing gets in or out."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState
from tests.searching import METRIC, add, fill, final_of, search_of, study_of
from tests.serving.browser import CHROMIUM, Browser, browsing

from trimtab.search.board import brief_error, brief_names, ranked, text_of, write_tables
from trimtab.search.importance import LEAST, shares
from trimtab.search.page import saved_seconds, write_page
from trimtab.search.parallel import parallel
from trimtab.search.plots import history, pareto, slices
from trimtab.search.record import Measured, Record, Told, leaders, records

AUX, RATE, L2 = "students.logconf.objective.aux_coef", "students.logconf.learning_rate", "students.logconf.tune.l2"
EVIL = "<script>alert(1)</script>"


def done(number: int, mean: float, **values: object) -> Record:
    return Record(number, "done", Told(values, {METRIC: Measured(mean, mean - 0.1, mean + 0.2, 9)}), (mean,))


def test_names_are_as_short_as_they_can_be_told_apart() -> None:
    assert brief_names([AUX, RATE, "students.naive.learning_rate", "beta"]) == {
        AUX: "aux_coef",
        RATE: "logconf.learning_rate",
        "students.naive.learning_rate": "naive.learning_rate",
        "beta": "beta",
    }


def test_values_read_as_they_are_written() -> None:
    assert text_of(1.0e-5) == "1e\N{MINUS SIGN}05"
    assert text_of({"kind": "xent", "hard": True}) == "xent(hard=true)"
    assert (text_of({"kind": "xent"}), text_of([1, 2]), text_of(None)) == ("xent", "[1, 2]", "null")


def test_the_best_lead_and_the_others_follow_in_their_order() -> None:
    failed, pruned = Record(0, "failed", Told({})), Record(3, "pruned", Told({}))
    rows = ranked([failed, done(1, 0.5), done(2, 0.7), pruned], ("max",))
    assert [(row.rank, row.record.number) for row in rows] == [(1, 2), (2, 1), (None, 0), (None, 3)]
    assert [row.record.number for row in ranked([done(1, 0.5), done(2, 0.7)], ("min",))] == [1, 2]


def test_history_has_the_best_so_far_and_intervals(tmp_path: Path) -> None:
    found = [done(0, 0.5), done(1, 0.4), Record(2, "failed", Told({})), done(3, 0.75)]
    trials, best, failed = history(search_of(tmp_path).spec, found, 0).data
    assert list(best.y) == [0.5, 0.5, 0.75]
    assert list(trials.error_y.array) == pytest.approx([0.2, 0.2, 0.2])
    assert list(trials.error_y.arrayminus) == pytest.approx([0.1, 0.1, 0.1])
    assert (list(failed.x), failed.y[0] < 0.3) == ([2], True)
    least = search_of(tmp_path, mode="min").spec
    assert list(history(least, found, 0).data[1].y) == [0.5, 0.4, 0.4]


def test_only_what_none_beats_in_both_is_on_the_front(tmp_path: Path) -> None:
    both = search_of(tmp_path, metric=("a/gold", "a/kl"), mode=("max", "min"), searcher={"kind": "nsga2"}).spec
    points = [(1.0, 1.0), (2.0, 2.0), (1.5, 3.0), (2.0, 2.0), (0.5, 0.5)]
    found = [Record(i, "done", Told({}), point) for i, point in enumerate(points)]
    beaten, front = pareto(both, found).data
    assert list(zip(beaten.x, beaten.y, strict=True)) == [(1.5, 3.0)]
    assert list(zip(front.x, front.y, strict=True)) == [(0.5, 0.5), (1.0, 1.0), (2.0, 2.0), (2.0, 2.0)]


def test_slices_leave_out_trials_without_the_field_and_keep_the_order_of_choices(tmp_path: Path) -> None:
    found = [done(0, 0.5, **{L2: 0.03}), done(1, 0.6, **{L2: 0.0, AUX: 0.2}), done(2, 0.4, **{L2: 0.03})]
    drawn = slices(search_of(tmp_path).spec, found, 0)
    assert set(drawn) == {AUX, L2}
    others, best = drawn[L2].data
    assert (list(others.x), list(best.x)) == ([2, 2], [0])
    assert list(drawn[L2].layout.xaxis.ticktext) == ["0", "0.003", "0.03"]
    assert list(drawn[AUX].data[1].x) == [0.2]


def test_side_by_side_a_line_goes_by_the_place_of_its_values(tmp_path: Path) -> None:
    found = [done(i, 0.1 * i, **{RATE: rate, L2: 0.0}) for i, rate in enumerate((1e-4, 1e-3, 1e-2))]
    found[0].told.values.pop(L2)
    lines = {
        line.hovertext.split("</b>")[0][-1]: list(line.y) for line in parallel(search_of(tmp_path).spec, found).data
    }
    assert lines["1"] == pytest.approx([0.5, 0.0, 0.5])
    assert lines["2"] == pytest.approx([1.0, 0.0, 1.0])
    assert lines["0"][1] < 0


def test_importance_falls_to_the_field_that_matters_and_needs_enough_trials(tmp_path: Path) -> None:
    search = search_of(tmp_path)
    found = records(fill(search, 40, failing=0, pruned=0))
    of = shares(search.spec, found, 0)
    assert max(of, key=of.__getitem__) == AUX
    assert sum(of.values()) == pytest.approx(1)
    assert shares(search.spec, found[: LEAST - 1], 0) == {}
    assert shares(search.spec, [done(i, 0.5, **{AUX: i / 20}) for i in range(20)], 0) == {}


def test_what_was_found_counts_with_all_below_it_and_once(tmp_path: Path) -> None:
    graph = {"prepare-1": (2.0, []), "train-1": (5.0, ["prepare-1/x"]), "label-1": (1.0, ["train-1", "prepare-1/y"])}
    for stage, (seconds, inputs) in graph.items():
        (tmp_path / stage).mkdir()
        record = {"seconds": seconds, "inputs": dict(enumerate(inputs))}
        (tmp_path / stage / "stage.json").write_text(json.dumps(record))
    first = Record(0, "done", Told({}, ran=list(graph)))
    second, third = Record(1, "done", Told({}, ran=["label-1"])), Record(2, "done", Told({}, ran=["gone-1"]))
    assert saved_seconds(tmp_path, [first, second, third]) == {0: 0, 1: 7.0, 2: 0}


def page_of(folder: Path, trials: int, *, verdict: str | None = None, **fields: object) -> str:
    search = search_of(folder, **fields)
    found = records(fill(search, trials) if trials else study_of(search))
    best = leaders(found, search.spec.modes)
    final = final_of(search, best[0].told.values, verdict) if verdict else None
    return write_page(search, found, final=final, out=search.folder / "report.html").read_text()


def test_the_verdict_comes_with_its_interval_and_the_stamp_of_truth(tmp_path: Path) -> None:
    page = page_of(tmp_path / "a", 12, verdict="ties", truth_budget=64)
    assert 'id="verdict" class="ties"' in page
    assert "+0.004" in page and "[−0.008, +0.016]" in page
    assert "Steered by the truth of 64 of 200 validation rows" in page
    assert "no row of truth was used" in page_of(tmp_path / "b", 3)
    much = page_of(tmp_path / "c", 3, truth_budget=150, more_truth=True)
    assert "That is more truth than 128 rows, as the search file asked." in much
    assert "stamp much" in much


def test_an_unfinished_search_says_so(tmp_path: Path) -> None:
    assert "Nothing was tested yet" in page_of(tmp_path / "a", 5)
    empty = page_of(tmp_path / "b", 0)
    assert "No trial has come to its end yet" in empty
    assert "<script" not in empty
    assert len(empty) < 20_000


def test_errors_that_differ_in_keys_alone_are_told_once(tmp_path: Path) -> None:
    search = search_of(tmp_path)
    found = records(fill(search, 9, failing=1.0))
    page = write_page(search, found, final=None, out=search.folder / "report.html").read_text()
    assert page.count("loss is not finite") == 1
    assert "trials 0, 1, 2, 3, 4, 5, 6, 7, 8" in page


def test_the_tables_hold_every_trial(tmp_path: Path) -> None:
    search = search_of(tmp_path)
    found = records(fill(search, 30))
    search.folder.mkdir(parents=True)
    write_tables(ranked(found, search.spec.modes), search.spec, search.folder)
    rows = list(csv.DictReader((search.folder / "leaderboard.csv").open()))
    best = leaders(found, ("max",))[0]
    assert len(rows) == 30
    assert float(rows[0][METRIC]) == best.objectives[0]
    assert float(rows[0][AUX]) == best.told.values[AUX]
    assert [row["error"] != "" for row in rows] == [row["status"] == "failed" for row in rows]
    table = json.loads((search.folder / "table.json").read_text())
    assert len(table) == 31
    assert {len(row) for row in table} == {len(table[0])}
    assert [row[-1] for row in table] == ["error", *(brief_error(row["error"]) for row in rows)]
    assert {row[-1] for row in table[1:]} == {"", "loss is not finite"}
    write_tables(ranked(leaders(found, ("max",)), search.spec.modes), search.spec, search.folder)
    assert "error" not in json.loads((search.folder / "table.json").read_text())[0]


def test_an_error_in_brief_is_what_went_wrong_without_the_stage_and_its_log() -> None:
    said = "StageError: stage vader-0aa1 (seed 0 / scores) failed: DataError: VADER gives one score\n  inputs: none"
    assert brief_error(said) == "DataError: VADER gives one score"
    assert brief_error("JobError: students.a: too large") == "JobError: students.a: too large"


def test_texts_stay_texts(tmp_path: Path) -> None:
    search = search_of(tmp_path, space={L2: {"choice": [EVIL, "plain"]}})
    study = study_of(search)
    for i in range(3):
        metrics = {METRIC: Measured(0.5 + i, 0.4, 0.6, 9)}
        add(search, study, Told({L2: EVIL}, metrics, ran=["train-1"], seconds=1.0), TrialState.COMPLETE)
    add(search, study, Told({L2: EVIL}, error=EVIL), TrialState.FAIL)
    page = write_page(search, records(study), final=None, out=search.folder / "report.html").read_text()
    assert EVIL not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_plot_is_drawn_in_a_browser_that_keeps_the_policy(
    tmp_path: Path, browser: Browser, width: int, scheme: str
) -> None:
    metrics = {"metric": ("a/gold", "a/kl"), "mode": ("max", "min"), "searcher": {"kind": "nsga2"}}
    search = search_of(tmp_path, **metrics)
    path = write_page(search, records(fill(search, 40)), final=None, out=search.folder / "report.html")
    with browser.page() as page:
        page.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        page.command("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        page.open(path.as_uri())
        page.wait("document.querySelectorAll('.plot').length > 0 && !document.querySelector('.plot:empty')")
        assert page.value("document.querySelectorAll('.plot .main-svg').length") > 0
        assert page.value("document.documentElement.scrollWidth <= innerWidth")
        assert page.value("performance.getEntriesByType('resource').length") == 0
        ink = {"light": "rgb(29, 35, 41)", "dark": "rgb(229, 232, 235)"}[scheme]
        assert page.value("getComputedStyle(document.body).color") == ink
        other = {"light": "dark", "dark": "light"}[scheme]
        before = page.value("document.querySelector('#pareto .scatterlayer .point').style.fill")
        page.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": other}])
        page.wait(f"document.querySelector('#pareto .scatterlayer .point').style.fill != {before!r}")
        assert page.wrongs == []


def test_no_address_but_those_that_plotly_names_is_in_the_page(tmp_path: Path) -> None:
    page = page_of(tmp_path, 12)
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "http" not in own.replace("http-equiv", "")
    assert "default-src 'none'" in own
    assert "unsafe-eval" not in own
