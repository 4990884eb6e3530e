"""The board hears a recorded run; lines, JSON lines and the tree show it."""

from __future__ import annotations

import io
import json
from typing import Any

from rich.console import Console

from trimtab.display import JsonLines, Lines, Tree
from trimtab.stage_board import Board, seconds


def plan(*labels: str, have: tuple[str, ...] = ()) -> dict[str, Any]:
    stages = [{"stage_id": label, "label": label, "stage": "train", "have": label in have} for label in labels]
    return {"event": "plan", "time": 0.0, "stages": stages}


def start(label: str, at: float = 0.0) -> dict[str, Any]:
    return {"event": "stage_start", "time": at, "stage_id": label}


def progress(label: str, done: int, total: int) -> dict[str, Any]:
    return {"event": "progress", "stage_id": label, "done": done, "total": total, "tokens_per_s": 12.4}


def end(label: str, status: str = "done", took: float = 2.0) -> dict[str, Any]:
    return {"event": "stage_end", "stage_id": label, "status": status, "seconds": took}


RUN = [
    {"event": "run_start", "run_id": "r"},
    plan("prepare", "seed 0 / split", "seed 0 / train ceiling", have=("prepare",)),
    end("prepare", "cached"),
    start("seed 0 / split"),
    end("seed 0 / split"),
    start("seed 0 / train ceiling", at=100.0),
    progress("seed 0 / train ceiling", 25, 100),
    {"event": "metrics", "stage_id": "seed 0 / train ceiling", "step": 1, "values": {"loss": 0.51234}},
    {"event": "note", "stage_id": "seed 0 / train ceiling", "text": "hello"},
    {"event": "progress", "stage_id": "of another run", "done": 1, "total": 2, "tokens_per_s": 0},
]


def heard(*events: dict[str, Any]) -> Board:
    board = Board()
    for event in events:
        board.hear(event)
    return board


def drawn(events: list[dict[str, Any]], *, width: int = 80, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    tree = Tree(console)
    for event in events:
        tree(event)
    console.print(tree.drawn())
    return console.file.getvalue().splitlines()


def test_the_board_follows_a_run() -> None:
    board = heard(*RUN)
    assert [line.state for line in board.lines.values()] == ["have", "done", "running"]
    assert board.finished == 2
    line = board.lines["seed 0 / train ceiling"]
    assert line.eta(now=110.0) == 30.0
    assert line.said(now=110.0) == "25/100, 30.0 s left, 12 tokens/s, loss 0.512"
    assert list(board.groups()) == ["", "seed 0"]


def test_a_failed_stage_is_not_finished() -> None:
    board = heard(*RUN, end("seed 0 / train ceiling", "failed"))
    assert board.finished == 2
    assert board.lines["seed 0 / train ceiling"].state == "failed"


def test_what_befalls_a_stage_that_goes_on_is_shown() -> None:
    text = "out of memory with micro_batch 8; again with 4"
    events = [plan("a"), start("a"), progress("a", 3, 8), {"event": "stage_retry", "stage_id": "a", "text": text}]
    line = heard(*events).lines["a"]
    assert (line.state, line.said(now=1.0)) == ("running", f"0/8, 12 tokens/s, {text}")
    stream = io.StringIO()
    lines = Lines(stream)
    more = {"worker_died": "rank 1 died: killed", "stage_restart": "attempt 2, with 1 workers"}
    for event in [*events, *({"event": kind, "stage_id": "a", "text": said} for kind, said in more.items())]:
        lines(event)
    assert [row.split(" ", 1)[1] for row in stream.getvalue().splitlines()[-3:]] == [
        f"retry  a  {text}",
        "died   a  rank 1 died: killed",
        "again  a  attempt 2, with 1 workers",
    ]


def test_nothing_is_guessed_before_progress() -> None:
    board = heard(plan("a"), start("a"))
    assert board.lines["a"].eta(now=5.0) is None
    assert board.lines["a"].said(now=5.0) == ""


def test_lines_say_starts_and_ends() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    for event in [*RUN, end("seed 0 / train ceiling", "failed", took=125.0)]:
        lines(event)
    said = [line.partition(" ")[2] for line in stream.getvalue().splitlines()]
    assert said == [
        "3 stages, 1 there already",
        "start  seed 0 / split",
        "done   seed 0 / split  2.0 s  (2/3)",
        "start  seed 0 / train ceiling",
        "failed seed 0 / train ceiling  2 min 05 s  (2/3)",
    ]


def test_lines_say_progress_now_and_then() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    lines.EVERY_S = -1.0
    for event in RUN[:7]:
        lines(event)
    assert "...    seed 0 / train ceiling  25/100" in stream.getvalue()


def test_json_lines_are_json_whatever_is_in_them() -> None:
    stream = io.StringIO()
    for event in [*RUN, {"event": "metrics", "values": {"loss": float("nan"), "path": object}}]:
        JsonLines(stream)(event)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == len(RUN) + 1
    assert lines[-1]["values"]["loss"] == "nan"


def test_the_tree_shows_what_runs() -> None:
    lines = drawn(RUN)
    assert [line.split()[:2] for line in lines[:4]] == [
        ["✓", "prepare"],
        ["▸", "seed"],
        ["✓", "split"],
        ["▸", "train"],
    ]
    assert "25/100" in lines[3]
    assert lines[-1].startswith("2/3 stages")


def test_finished_and_waiting_groups_take_one_row() -> None:
    labels = [f"seed {seed} / {stage}" for seed in range(3) for stage in ("split", "train", "evaluate")]
    ends = [end(label) for label in labels[:3]]
    lines = drawn([plan(*labels), *ends, start(labels[3])])
    assert [" ".join(line.split()) for line in lines[:6]] == [
        "✓ seed 0 3/3",
        "▸ seed 1 0/3",
        "▸ split ...",
        "· train",
        "· evaluate",
        "· seed 2 0/3",
    ]


def test_the_tree_fits_the_terminal() -> None:
    labels = [f"seed {seed} / {stage} {'of a very long name ' * 5}" for seed in range(30) for stage in "abcdefgh"]
    running = [start(label) for label in labels[::8][:12]]
    for height in (40, 24, 10, 5):
        lines = drawn([plan(*labels), *running, progress(labels[0], 1, 2)], height=height)
        assert len(lines) < height
        assert all(len(line) <= 80 for line in lines)
        assert lines[-1].startswith("0/240 stages")
    assert "more" in lines[-2]


def test_times_in_words() -> None:
    assert [seconds(None), seconds(9.96), seconds(125)] == ["", "10.0 s", "2 min 05 s"]


def test_a_stage_that_another_process_makes_is_waited_for_in_words() -> None:
    wait = {"event": "stage_wait", "time": 0.0, "stage_id": "seed 0 / split"}
    told = [plan("prepare", "seed 0 / split", have=("prepare",)), wait]
    assert any("split another process makes it" in line for line in drawn(told))
    assert heard(*told).finished == 1
    found = heard(*told, end("seed 0 / split", "cached"))
    assert (found.lines["seed 0 / split"].state, found.finished) == ("have", 2)
    stream = io.StringIO()
    lines = Lines(stream)
    for event in told:
        lines(event)
    assert stream.getvalue().splitlines()[-1].endswith("wait   seed 0 / split  another process makes it")


def test_nodes_that_are_waited_for_are_said_until_a_stage_starts() -> None:
    waits = {"event": "nodes_wait", "time": 0.0, "text": "an autoscaler is waited for: 2 workers need 8 CPUs"}
    stages = plan(*(f"seed {seed} / train" for seed in range(9)))
    rows = drawn([stages, waits], width=40, height=6)
    assert len(rows) <= 6 and "an autoscaler is waited for: 2 work" in rows[-2]
    stream = io.StringIO()
    lines = Lines(stream)
    for event in (stages, waits):
        lines(event)
    assert stream.getvalue().splitlines()[-1].endswith("wait   " + waits["text"])
    assert not any("autoscaler" in row for row in drawn([stages, waits, start("seed 0 / train")]))
