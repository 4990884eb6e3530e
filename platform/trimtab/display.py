"""What a running job looks like: a live stage tree, plain lines off a terminal, or one JSON object a line."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trimtab.progress import TROUBLES
from trimtab.run.log import Listener, finite
from trimtab.stage_board import Board, Event, Line, seconds, state_of

MARKS = {
    "waiting": "[dim]·[/]",
    "running": "[cyan]▸[/]",
    "elsewhere": "[cyan]·[/]",
    "done": "[green]✓[/]",
    "have": "[dim]✓[/]",
    "failed": "[red]✗[/]",
    "interrupted": "[yellow]✗[/]",
}
BAR = 16
ELSEWHERE = "another process makes it"


def live(console: Console, drawn: Callable[[], RenderableType]) -> Live:
    """What is drawn anew four times a second; what stages print does not get between."""
    return Live(
        console=console, refresh_per_second=4, get_renderable=drawn, redirect_stdout=False, redirect_stderr=False
    )


class Tree:
    """The live stage tree of a terminal, by seed: bars, time left and tokens a second of what runs.

    It never grows taller than the terminal: first finished and waiting stages are left out, then whole groups.
    """

    def __init__(self, console: Console) -> None:
        self.board, self.started, self.console = Board(), time.time(), console
        self.live = live(console, self.drawn)

    def __call__(self, event: Event) -> None:
        self.board.hear(event)

    def drawn(self) -> Group:
        groups, room = self.board.groups(), self.console.height - 2 - bool(self.board.waits)
        rows: list[list[Any]] = []
        for detail in ("all", "running", "counts"):
            rows = [row for head, lines in groups.items() for row in self._group(head, lines, detail)]
            if len(rows) <= room:
                break
        if len(rows) > room:
            states = [state_of(lines) for lines in groups.values()]
            kept = [row for row, state in zip(rows, states, strict=False) if state == "running"]
            rows = kept[: room - 1]
            rows.append(["", Text(f"{len(groups) - len(rows)} more", "dim")])
        grid = Table.grid(padding=(0, 1))
        for cut_first in (False, False, False, True):
            grid.add_column(no_wrap=not cut_first)
        for row in rows:
            grid.add_row(*row)
        took = seconds(time.time() - self.started)
        waits = [Text(self.board.waits, "yellow", no_wrap=True, overflow="ellipsis")] if self.board.waits else []
        return Group(grid, *waits, Text(f"{self.board.finished}/{len(self.board.lines)} stages, {took}", "dim"))

    def _group(self, head: str, lines: list[Line], detail: str) -> Iterator[list[Any]]:
        state = state_of(lines)
        if head or detail == "counts":
            finished = sum(line.state in ("done", "have") for line in lines)
            count = Text(f"{finished}/{len(lines)}", "dim")
            yield [Text.from_markup(MARKS[state]), Text(head or "shared", "bold" * (state == "running")), count]
        if (head and state != "running") or detail == "counts":
            return
        for line in lines:
            if detail == "all" or line.state not in ("waiting", "done", "have"):
                yield self._row(line, indent=bool(head))

    def _row(self, line: Line, *, indent: bool) -> list[Any]:
        name = Text("  " * indent + line.label.rpartition(" / ")[2])
        name.truncate(self.console.width // 2, overflow="ellipsis")
        mark = Text.from_markup(MARKS.get(line.state, ""))
        if line.state == "elsewhere":
            return [mark, name, Text(ELSEWHERE, "dim")]
        if line.state != "running":
            return [mark, name, Text(seconds(line.seconds) if line.seconds else "", "dim")]
        bar = ProgressBar(line.total, line.done, width=BAR) if line.total else Text("...", "dim")
        return [mark, name, bar, Text(line.said(time.time()), "dim", no_wrap=True, overflow="ellipsis")]


class Lines:
    """A line when a stage starts and ends, and now and then while it runs: for files and pipes."""

    EVERY_S = 15.0

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.board, self.last = stream, Board(), time.time()

    def __call__(self, event: Event) -> None:
        line = self.board.hear(event)
        if event["event"] == "plan":
            self._say(f"{len(self.board.lines)} stages, {self.board.finished} there already")
        elif event["event"] == "nodes_wait":
            self._say(f"wait   {self.board.waits}")
        elif line and event["event"] == "stage_start":
            self._say(f"start  {line.label}")
        elif line and event["event"] == "stage_end" and event["status"] != "cached":
            count = f"({self.board.finished}/{len(self.board.lines)})"
            self._say(f"{event['status']:<6} {line.label}  {seconds(line.seconds)}  {count}")
        elif line and event["event"] == "stage_wait":
            self._say(f"wait   {line.label}  {ELSEWHERE}")
        elif line and event["event"] in TROUBLES:
            self._say(f"{TROUBLES[event['event']]:<6} {line.label}  {event['text']}")
        elif line and event["event"] == "progress" and time.time() - self.last > self.EVERY_S:
            self._say(f"...    {line.label}  {line.said(time.time())}")

    def _say(self, text: str) -> None:
        self.last = time.time()
        print(time.strftime("%H:%M:%S"), text, file=self.stream, flush=True)


class JsonLines:
    """Every event as one JSON object a line."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __call__(self, event: Event) -> None:
        print(json.dumps(finite(event), default=str), file=self.stream, flush=True)


@contextmanager
def display(
    *, as_json: bool, screen: Callable[[Console], Any] = Tree, lines: Callable[[TextIO], Listener] = Lines
) -> Iterator[Listener]:
    """The display that fits where stdout goes: a `screen` of a terminal, which has a `live` of rich, or `lines`.

    It writes to a copy of stdout; what stages print meanwhile goes to stderr, so that it cannot get between the lines.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    stream = os.fdopen(os.dup(kept), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        if as_json:
            yield JsonLines(stream)
        elif stream.isatty():
            tree = screen(Console(file=stream))
            with tree.live:
                yield tree
        else:
            yield lines(stream)
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        stream.close()
