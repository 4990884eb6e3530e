"""The report page of policies: its words, its table, where its plots put things, and that no text gets out of hand."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from trimtab.metrics import Pgr
from trimtab.stages._policy_kl import draw_kl, spread
from trimtab.stages._policy_page import (
    Estimate,
    PolicyReport,
    PolicyResult,
    Sample,
    estimate_text,
    render_page,
    summary_table,
)
from trimtab.stages._policy_plots import curve_panels, draw_gold, headline_plot, held_out
from trimtab.stages._policy_verdict import verdict
from trimtab.stages._report_page import LabelQuality, StageTime

HOSTILE = '<script src="https://evil.example/x.js">alert(1)</script> $\\frac{ ]]> \u4e2d\ud800\u202e\x00 "\'&'
SECTIONS = [
    *("results", "gold", "kl", "wins", "accuracy", "curves", "samples"),
    *("labels", "time", "counts", "versions", "job", "notes"),
]
OK = Pgr(0.2, 0.4, 0.6, 0.5, 0.4, 0.6, "ok", 500, 3)
UNINFORMATIVE = replace(OK, lo=-40.0, hi=55.0, status="uninformative")
UNDEFINED = Pgr(0.6, 0.4, 0.2, None)
STEPS = [(10 * i, {"loss": 0.7 - i / 20, "objective/rewards/margins": i / 2, "grad_norm": 1.0}) for i in range(4)]
CURVE = [*STEPS, (40, {"eval_agreement": 0.7, "objective/logps/chosen": -60.0, "loss": float("nan")})]


def near(value: float, width: float = 0.02) -> Estimate:
    return Estimate(value, value - width, value + width)


def reference() -> PolicyResult:
    samples = [Sample(f"prompt {i}", f"plain answer {i}", 0.1) for i in range(8)]
    return PolicyResult("reference", "reference", near(0.1), kl=near(0, 0), length=20.0, samples=samples)


def student(name: str = "student.dpo", gold: float = 0.4, **other: Any) -> PolicyResult:
    found = {
        "gain": near(gold - 0.1, 0.03),
        "win_rate": near(0.612, 0.04),
        "accuracy": near(0.75),
        "kl": near(9.0, 1.0),
        "length": 22.0,
        "pgr_gold": OK,
        "per_seed": [gold - 0.01, gold, gold + 0.01],
        "curves": [CURVE, CURVE, CURVE],
        "samples": [Sample(f"prompt {i}", f"trained answer {i}", 0.4) for i in (7, 6)],
    }
    return PolicyResult(name, "student", near(gold), **(found | other))


def report(*students: PolicyResult, **other: Any) -> PolicyReport:
    ceiling = replace(student("ceiling", 0.6, pgr_gold=None, kl=near(12.0)), role="ceiling")
    supervisor = PolicyResult("supervisor", "supervisor", near(0.2), accuracy=near(0.7), per_seed=[0.2], curves=[CURVE])
    found = {
        "best_of_n": [(1, 0.0, 0.1), (2, 0.19, 0.2), (4, 0.64, 0.28)],
        "label_quality": [LabelQuality(0, 0, 0.71, None, None, 0.29)],
        "counts": [("pairs", 3611), ("prompts left out: too long", 12)],
        "stages": [
            StageTime("student.dpo", "align", 75.0, False, 100.0),
            StageTime("reference", "generate", 3.0, True),
        ],
        "notes": ["A note."],
        "gold_name": "VADER compound score",
        "seeds": 3,
        "n_test": 500,
    }
    models = [reference(), supervisor, *students, ceiling]
    return PolicyReport("Openings", "pipeline: x\n", {"trl": "1.16"}, None, "2030", models, **(found | other))


class Page(HTMLParser):
    """What a browser would see: tags, attributes, text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)
        self.sections = [value for name, value in self.attributes if name == "id" and value in SECTIONS]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def axes() -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(5.2, 3.9), layout="constrained").subplots()


def drawn_text(ax: Any) -> tuple[list[Any], Any]:
    """Boxes of all written text without the lines that tie it to points, and the canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    FigureCanvasAgg(ax.figure).draw()
    return [Text.get_window_extent(text) for text in ax.texts if text.get_text()], ax.figure.canvas


def test_table_has_a_row_a_model_and_dashes_for_what_is_missing() -> None:
    table = summary_table(report(student()))
    assert table[0][-2:] == ["KL", "tokens"]
    assert [row[0] for row in table] == ["model", "reference", "supervisor", "student.dpo", "ceiling"]
    shares = ["61.2 % [57.2, 65.2]", "75.0 % [73.0, 77.0]", "0.50 [0.40, 0.60] ok"]
    assert table[3][1:] == ["0.400 [0.380, 0.420]", "0.300 [0.270, 0.330]", *shares, "9.00 [8.00, 10.00]", "22.0"]
    assert table[2][1:] == ["0.200 [0.180, 0.220]", "–", "–", "70.0 % [68.0, 72.0]", "–", "–", "–"]


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (None, "–"),
        (Estimate(float("nan"), 0.0, 1.0), "–"),
        (Estimate(-0.5, None, None), "−0.500"),
        (Estimate(-0.5, -1.0, float("inf")), "−0.500"),
    ],
)
def test_an_estimate_without_an_interval_shows_none(estimate: Estimate | None, text: str) -> None:
    assert estimate_text(estimate) == text


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (near(0.3, 0.03), "raises the gold reward (VADER compound score) from 0.100 for the reference to 0.400"),
        (near(0.3, 0.03), "the gain is 0.300 [0.270, 0.330], and its 95 % interval excludes 0"),
        (near(0.3, 0.4), "does not clearly change the gold reward"),
        (near(0.3, 0.4), "interval holds 0"),
        (near(-0.3, 0.1), "lowers the gold reward"),
        (near(-0.3, 0.1), "interval excludes 0"),
        (Estimate(0.3), "that may be chance"),
        (None, "that may be chance"),
    ],
)
def test_verdict_claims_a_gain_only_with_an_interval_that_excludes_zero(gain: Estimate | None, words: str) -> None:
    assert words in verdict(report(student(gain=gain)))


@pytest.mark.parametrize(
    ("pgr", "words"),
    [
        (OK, "It recovers 50 % of the gap from the weak line (0.200) to the ceiling (0.600): PGR 0.50 [0.40, 0.60]"),
        (
            UNINFORMATIVE,
            "uninformative, because the gap from the weak line (0.200) to the ceiling (0.600) is within two",
        ),
        (UNDEFINED, "undefined, because the ceiling (0.200) is not above the weak line (0.600)"),
        (replace(OK, lo=-0.1), "not clearly different from the weak line (0.200)"),
        (replace(OK, value=-0.3, lo=-0.4, hi=-0.2), "It stays below the weak line (0.200)"),
        (replace(OK, value=1.3, lo=1.2, hi=1.4), "It lies above the ceiling (0.600)"),
        (None, "There is no PGR of the gold reward; the ceiling reaches 0.600."),
    ],
)
def test_verdict_places_the_student_between_the_weak_line_and_the_ceiling(pgr: Pgr | None, words: str) -> None:
    assert words in verdict(report(student(pgr_gold=pgr)))


def test_verdict_names_the_best_student_and_a_pgr_of_accuracy_that_says_nothing() -> None:
    better = student("student.simpo", 0.5, pgr_accuracy=UNDEFINED)
    said = verdict(report(student(), better, student("student.broken", float("nan"))))
    assert said.startswith("The best of 2 students on these test prompts, student.simpo, raises")
    assert "PGR of the preference accuracy is undefined" in said


@pytest.mark.parametrize(
    ("length", "words"), [(30.0, "50 % longer"), (12.0, "40 % shorter"), (22.0, None), (None, None)]
)
def test_verdict_mentions_length_where_it_moves_a_lot(length: float | None, words: str | None) -> None:
    said = verdict(report(student(length=length)))
    assert (words or ".") in said and ("tokens" in said) == (words is not None)


def test_verdict_without_a_reference_or_a_student_names_what_is_missing() -> None:
    assert "Without a scored student there" in verdict(report())
    assert "Without a scored reference there" in verdict(replace(report(), models=[student()]))


def test_gold_lines_stand_where_pgr_counts_from_and_to() -> None:
    ax = axes()
    draw_gold(ax, report=report(student()))
    handles, labels = ax.get_legend_handles_labels()
    assert dict(zip(labels, [line.get_xdata()[0] for line in handles], strict=True)) == {
        "reference": 0.1,
        "supervisor": 0.2,
        "ceiling": 0.6,
    }
    only_accuracy = PolicyResult("supervisor", "supervisor", Estimate(None), accuracy=near(0.7))
    assert replace(report(), models=[reference(), only_accuracy, student(pgr_gold=None)]).weak_line() is None
    assert replace(report(), models=[reference(), only_accuracy, student()]).weak_line() == 0.2


def test_rounds_are_joined_from_the_reference_and_end_at_the_model() -> None:
    ax = axes()
    draw_kl(ax, report(student(path=[(4.0, 0.3), (float("nan"), 0.3), (9.0, 0.4)])))
    paths = [list(zip(*line.get_data(), strict=True)) for line in ax.lines]
    assert [(0.0, 0.1), (4.0, 0.3), (9.0, 0.4)] in paths
    assert [(0.0, 0.1), (0.19, 0.2), (0.64, 0.28)] in paths
    left, right = ax.get_xlim()
    assert left < 0 and right > 12.02
    assert {"2", "4"} <= {text.get_text() for text in ax.texts}


def test_a_negative_estimate_of_a_small_kl_stays_on_the_plot() -> None:
    ax = axes()
    draw_kl(ax, report(student(kl=near(-0.05, 0.2))))
    assert ax.get_xlim()[0] < -0.25


def test_names_beside_the_points_are_kept_apart_even_of_equal_points() -> None:
    ax = axes()
    draw_kl(ax, report(*(student(f"student.{'long_method_name_' * 3}{i}", 0.6) for i in range(8)), best_of_n=[]))
    boxes, canvas = drawn_text(ax)
    width, height = canvas.get_width_height()
    assert not [
        (a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.shrunk(0.9, 0.9).overlaps(b.shrunk(0.9, 0.9))
    ]
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)


def test_spread_moves_apart_no_more_than_it_must() -> None:
    assert spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.2, 0.5, 0.5], 0.1) == pytest.approx([0.2, 0.45, 0.55])
    assert spread([0.0, 0.0, 0.0], 0.1) == pytest.approx([0.0, 0.1, 0.2])
    assert spread([0.98, 0.99, 1.0], 0.1) == pytest.approx([0.8, 0.9, 1.0])
    assert spread([], 0.1) == []


def test_panels_take_usual_metrics_whatever_their_prefix_and_others_only_without_them() -> None:
    assert curve_panels(student()) == {
        "loss": ["loss"],
        "reward margin": ["objective/rewards/margins"],
        "share of pairs ranked right": ["eval_agreement"],
        "log-prob of chosen": ["objective/logps/chosen"],
    }
    odd = [(1, {"grad_norm": 1.0, "odd": 2.0, "eval_odd": 3.0, "learning_rate": 1e-5})]
    assert curve_panels(student(curves=[odd])) == {"eval_odd": ["eval_odd"], "odd": ["odd"]}
    assert curve_panels(student(curves=[[]])) == {}
    assert held_out("eval_agreement") and held_out("oracle/accuracy") and not held_out("objective/logps/chosen")


@pytest.mark.slow
def test_page_has_every_section_shows_its_numbers_and_reaches_nowhere() -> None:
    html = render_page(report(student(pgr_accuracy=UNINFORMATIVE)))
    page = Page(html)
    assert page.sections == SECTIONS
    assert "Nothing recorded" not in page.text
    for shown in (
        "61.2 % [57.2, 65.2]",
        "0.50 [−40.00, 55.00]",
        "3611",
        "prompts left out: too long",
        "71.0 %",
        "500 test",
    ):
        assert shown in page.text
    known_names = {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}
    assert set(re.findall(r"https?://[^\s\"'<]+", html)) <= known_names
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert 'http-equiv="Content-Security-Policy"' in html
    assert len([1 for name, _ in page.attributes if name == "aria-label"]) == page.tags.count("svg") == 5 + 3
    targets = [value for name, value in page.attributes if name == "id"]
    used = {value[1:] for name, value in page.attributes if name == "xlink:href"}
    used |= {found for _, value in page.attributes for found in re.findall(r"url\(#([^)]+)\)", value)}
    assert used and all(targets.count(name) == 1 for name in used)


@pytest.mark.slow
def test_samples_stand_side_by_side_those_first_that_more_models_answered() -> None:
    page = Page(render_page(report(student())))
    answered = re.findall(r"(plain|trained) answer (\d)", page.text)
    assert answered[:4] == [("plain", "6"), ("trained", "6"), ("trained", "6"), ("plain", "7")]
    assert "6 of 8 recorded prompts" in page.text


@pytest.mark.slow
def test_hostile_text_stays_text_and_long_text_says_that_it_is_cut() -> None:
    samples = [Sample(HOSTILE, HOSTILE, 0.1), Sample("long", "x" * 5000, None)]
    data = report(
        student("student." + HOSTILE, curves=[[(1, {HOSTILE: 1.0})]]),
        counts=[(HOSTILE, 1)],
        notes=[HOSTILE],
        gold_name=HOSTILE,
        stages=[StageTime(HOSTILE, "align", 1.0, False)],
    )
    models = [replace(model, samples=samples) for model in data.models]
    html = render_page(replace(data, models=models, title=HOSTILE, job_file=HOSTILE, versions={HOSTILE: HOSTILE}))
    page = Page(html)
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "src"]
    assert page.text.count("alert(1)") >= 16
    assert "x" * 599 + "…" in page.text and "x" * 600 not in page.text
    html.encode("utf-8")


def test_a_report_of_nothing_still_has_every_section() -> None:
    html = render_page(PolicyReport("t", "", {}, None, "now", models=[]))
    assert Page(html).sections == SECTIONS
    assert "Without a scored reference, student" in html


@pytest.mark.slow
@pytest.mark.parametrize("empty", [False, True])
def test_headline_plot_is_a_wide_png(empty: bool, tmp_path: Path) -> None:
    from matplotlib.image import imread

    data = report(student("student.dpo", path=[(9.0, 0.4)]), gold_name=HOSTILE)
    headline_plot(replace(data, models=[]) if empty else data, tmp_path / "headline.png")
    assert imread(tmp_path / "headline.png").shape[:2] == (480, 1200)
