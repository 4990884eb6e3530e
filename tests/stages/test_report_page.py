"""The report page: its numbers, its words, and that nothing in the data can reach outside the page."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from trimtab.metrics import Pgr
from trimtab.stages._report_page import (
    LabelQuality,
    ModelResult,
    ReportData,
    SplitSummary,
    StageTime,
    duration,
    render_page,
    summary_table,
    verdict,
)

HOSTILE = '<script src="https://evil.example/x.js">alert(1)</script> $\\frac{ ]]> \u4e2d\ud800\x00 "\'&'
SECTIONS = [
    "results",
    "pgr",
    "accuracy",
    "curves",
    "agreement",
    "calibration",
    "labels",
    "time",
    "data",
    "versions",
    "job",
    "notes",
]


OK = Pgr(0.6363, 0.7714, 0.9223, 0.472378, 0.31, 0.62, "ok", 1000, 2)
UNINFORMATIVE = Pgr(0.70, 0.703, 0.705, 0.6, -40.0, 55.0, "uninformative", 1000, 2)
UNDEFINED = Pgr(0.70, 0.65, 0.60, None, n_test=1000, seeds=2)


def model(name: str, role: str, accuracy: float, pgr: Pgr | None = None) -> ModelResult:
    steps = [(10 * i, {"loss": 1 / (1 + i), "grad_norm": 1.0}) for i in range(4)]
    steps += [(40, {"eval_agreement": 0.8, "oracle/accuracy": 0.7, "loss": float("nan")})]
    return ModelResult(
        name=name,
        role=role,
        accuracy=accuracy,
        lo=accuracy - 0.015,
        hi=accuracy + 0.014,
        per_seed=[accuracy - 0.01, accuracy + 0.01],
        auroc=0.9,
        ece=0.0428,
        brier=None,
        pgr=pgr,
        agreement=None if role == "supervisor" else {"all": 0.8, "supervisor_right": 0.9, "supervisor_wrong": 0.417},
        calibration=[(0.55, 0.5, 10), (0.95, 0.9, 40), (0.65, float("nan"), 0)],
        curves=[steps, steps],
    )


def report(pgr: Pgr, name: str = "student.naive") -> ReportData:
    return ReportData(
        title="Reviews",
        job_file="pipeline: weak_to_strong\n",
        versions={"torch": "2.13.0"},
        commit=None,
        created="2030-01-01",
        models=[
            model("supervisor", "supervisor", pgr.weak),
            model(name, "student", pgr.student, pgr),
            model("ceiling", "ceiling", pgr.ceiling),
        ],
        stages=[StageTime("supervisor", "train", 75.0, True), StageTime("naive", "train", 12.5, False, 100.0)],
        notes=["A note."],
        data=[SplitSummary(0, "test", 1000, {"neg": 500, "pos": 500})],
        label_quality=[LabelQuality(0, 0, 0.64, 0.05, 0.2, 0.36)],
    )


class Page(HTMLParser):
    """What a browser would see: tags, attributes, text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_table_has_interval_and_status_word() -> None:
    assert summary_table(report(OK)) == [
        ["model", "accuracy", "PGR"],
        ["supervisor", "63.6 % [62.1, 65.0]", "–"],
        ["student.naive", "77.1 % [75.6, 78.5]", "0.47 [0.31, 0.62] ok"],
        ["ceiling", "92.2 % [90.7, 93.6]", "–"],
    ]


@pytest.mark.parametrize(
    ("pgr", "cell"),
    [
        (UNINFORMATIVE, "0.60 [−40.00, 55.00] uninformative"),
        (UNDEFINED, "undefined"),
        (replace(UNDEFINED, value=float("nan")), "undefined"),
        (replace(OK, value=-0.2, lo=None, hi=None), "−0.20 ok"),
        (replace(OK, value=1.25, lo=1.1, hi=1.4), "1.25 [1.10, 1.40] ok"),
    ],
)
def test_pgr_cell_is_never_clipped(pgr: Pgr, cell: str) -> None:
    assert summary_table(report(pgr))[2][2] == cell


@pytest.mark.parametrize(
    ("pgr", "words"),
    [
        (
            OK,
            "28.6 points above the supervisor (63.6 %); "
            "the only student, student.naive, reaches 77.1 %, recovering 47 %",
        ),
        (UNINFORMATIVE, "PGR is uninformative, because that gap is within two of its standard errors"),
        (UNDEFINED, "10.0 points below the supervisor (70.0 %)"),
        (UNDEFINED, "not above its supervisor; PGR is undefined"),
        (replace(OK, lo=-0.1), "not clearly different from its supervisor"),
        (replace(OK, student=0.6, value=-0.13, lo=-0.2, hi=-0.05), "below its supervisor: PGR −0.13"),
        (replace(OK, student=0.95, value=1.1, lo=1.02, hi=1.2), "more than the ceiling"),
    ],
)
def test_verdict_says_what_the_numbers_carry(pgr: Pgr, words: str) -> None:
    assert words in verdict(report(pgr))


def test_verdict_names_the_best_student_and_how_many_it_was_picked_from() -> None:
    data = report(OK)
    better = model("student.logconf", "student", 0.80, replace(OK, student=0.80, value=0.572, lo=0.4, hi=0.7))
    said = verdict(replace(data, models=[*data.models, better]))
    assert "the best of 2 students on these test rows, student.logconf, reaches 80.0 %, recovering 57 %" in said


def test_verdict_without_a_ceiling_names_what_is_missing() -> None:
    data = report(OK)
    assert "Without a scored ceiling" in verdict(replace(data, models=data.models[:2]))


def test_durations() -> None:
    assert [duration(s) for s in (0.44, 59.94, 200, 3900)] == ["0.4 s", "59.9 s", "3 min 20 s", "1 h 05 min"]


@pytest.mark.slow
@pytest.mark.parametrize("pgr", [OK, UNINFORMATIVE, UNDEFINED], ids=lambda pgr: pgr.status)
def test_page_has_every_section_and_reaches_nowhere(pgr: Pgr) -> None:
    html = render_page(report(pgr))
    page = Page(html)
    assert [value for name, value in page.attributes if name == "id" and value in SECTIONS] == SECTIONS
    assert "Nothing recorded" not in page.text
    assert set(re.findall(r"https?://[^\s\"'<]+", html)) <= {
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    }
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert len(html) < 2_000_000
    assert pgr.status == "ok" or pgr.status in page.text


@pytest.mark.slow
def test_page_shows_the_numbers_describes_its_plots_and_keeps_their_ids_apart() -> None:
    page = Page(render_page(report(OK)))
    for shown in ("77.1 % [75.6, 78.5]", "0.47 [0.31, 0.62] ok", "41.7 %", "0.043", "36.0 %", "neg: 500, pos: 500"):
        assert shown in page.text
    assert "oracle (truth; steers nothing)" in page.text
    assert "1 of 2 stages ran, 12.5 s of work in 12.5 s from first start to last end" in page.text
    described = [value for name, value in page.attributes if name == "aria-label"]
    assert len(described) == page.tags.count("svg") == 4 + 3 + 3
    assert "PGR by method. student.naive: 0.47 [0.31, 0.62] ok" in described
    targets = [value for name, value in page.attributes if name == "id"]
    used = {value[1:] for name, value in page.attributes if name == "xlink:href"}
    used |= {found for _, value in page.attributes for found in re.findall(r"url\(#([^)]+)\)", value)}
    assert used and all(targets.count(name) == 1 for name in used)


def test_hostile_text_stays_text() -> None:
    data = report(OK, name="student." + HOSTILE)
    hostile = replace(
        data,
        title=HOSTILE,
        job_file=HOSTILE,
        versions={HOSTILE: HOSTILE},
        notes=[HOSTILE],
        stages=[StageTime(HOSTILE, "train", 1.0, False)],
        data=[SplitSummary(0, HOSTILE, 1, {HOSTILE: 1})],
    )
    html = render_page(hostile)
    page = Page(html)
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "src"]
    assert page.text.count("alert(1)") >= 10
    html.encode("utf-8")


def test_a_report_of_nothing_still_has_every_section() -> None:
    html = render_page(ReportData("t", "", {}, None, "now", models=[]))
    assert [value for name, value in Page(html).attributes if name == "id" and value in SECTIONS] == SECTIONS
    assert "Without a scored supervisor, ceiling, student" in html


def test_many_long_names_are_kept_apart() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from trimtab.stages._report_draw import draw_accuracy

    models = [model(f"student.{'long_method_name_' * 4}{i}", "student", 0.7 + i / 100, OK) for i in range(8)]
    figure = Figure(figsize=(5.2, 0.85 + 0.34 * 8), layout="constrained")
    ax = figure.subplots()
    draw_accuracy(ax, models)
    FigureCanvasAgg(figure).draw()
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text()]
    width, height = figure.canvas.get_width_height()
    assert not [
        (a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.shrunk(0.9, 0.9).overlaps(b.shrunk(0.9, 0.9))
    ]
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)


@pytest.mark.parametrize("pgr", [OK, UNDEFINED], ids=lambda pgr: pgr.status)
def test_headline_plot_is_a_wide_png(pgr: Pgr, tmp_path: Path) -> None:
    from matplotlib.image import imread

    from trimtab.stages._report_plots import headline_plot

    headline_plot(report(pgr, name=HOSTILE), tmp_path / "headline.png")
    assert imread(tmp_path / "headline.png").shape[:2] == (480, 1200)
