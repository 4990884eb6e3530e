"""What a running job looks like: a live stage tree, plain lines off a terminal, or one JSON object a line."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trimtab.run.log import finite

Event = dict[str, Any]
MARKS = {
    "waiting": "[dim]·[/]",
    "running": "[cyan]▸[/]",
    "done": "[green]✓[/]",
    "have": "[dim]✓[/]",
    "failed": "[red]✗[/]",
}


@dataclass
class Line:
    """A stage as it stands."""

    label: str
    state: str = "waiting"
    started: float = 0.0
    seconds: float = 0.0
    done: int = 0
    total: int = 0
    tokens_per_s: float = 0.0
    loss: float | None = None

    @property
    def eta(self) -> float | None:
        """Seconds left, from the share done."""
        if self.state != "running" or not self.done:
            return None
        return (time.time() - self.started) * (self.total - self.done) / self.done


@dataclass
class Board:
    """The state of every stage, kept by the events of a run."""

    lines: dict[str, Line] = field(default_factory=dict)

    def hear(self, event: Event) -> Line | None:
        kind, line = event["event"], self.lines.get(event.get("stage_id", ""))
        if kind == "plan":
            for stage in event["stages"]:
                self.lines[stage["stage_id"]] = Line(stage["label"], "have" if stage["have"] else "waiting")
        if line is None:
            return None
        if kind == "stage_start":
            line.state, line.started = "running", event["time"]
        elif kind == "progress":
            line.done, line.total, line.tokens_per_s = event["done"], event["total"], event["tokens_per_s"]
        elif kind == "metrics":
            line.loss = event["values"].get("loss", line.loss)
        elif kind == "stage_end" and event["status"] != "cached":
            line.state, line.seconds = event["status"], event["seconds"]
        return line

    @property
    def finished(self) -> int:
        return sum(line.state in ("done", "have") for line in self.lines.values())


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f} s" if value < 100 else f"{int(value) // 60} min {int(value) % 60:02d} s"


class Tree:
    """The live stage tree of a terminal, by seed: bars, time left and tokens a second of what runs."""

    def __init__(self, console: Console) -> None:
        self.board, self.started = Board(), time.time()
        self.live = Live(console=console, refresh_per_second=4, get_renderable=self._drawn, redirect_stdout=False)

    def __enter__(self) -> Tree:
        self.live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.live.stop()

    def __call__(self, event: Event) -> None:
        self.board.hear(event)

    def _drawn(self) -> Group:
        groups: dict[str, list[Line]] = {}
        for line in self.board.lines.values():
            head, _, _ = line.label.rpartition(" / ")
            groups.setdefault(head, []).append(line)
        grid = Table.grid(padding=(0, 1))
        for head, lines in groups.items():
            if head and all(line.state in ("waiting", "have", "done") for line in lines):
                finished = sum(line.state != "waiting" for line in lines)
                mark = "done" if finished == len(lines) else "waiting"
                grid.add_row(Text.from_markup(MARKS[mark]), Text(head), Text(f"{finished}/{len(lines)}", "dim"))
                continue
            if head:
                grid.add_row("", Text(head, "bold"))
            for line in lines:
                grid.add_row(*self._row(line, indent=bool(head)))
        took = seconds(time.time() - self.started)
        return Group(grid, Text(f"{self.board.finished}/{len(self.board.lines)} stages, {took}", "dim"))

    def _row(self, line: Line, *, indent: bool) -> list[Any]:
        name = Text("  " * indent + line.label.rpartition(" / ")[2])
        mark = Text.from_markup(MARKS.get(line.state, ""))
        if line.state != "running":
            return [mark, name, Text(seconds(line.seconds) if line.seconds else "", "dim")]
        said = [f"{line.done}/{line.total}"] * bool(line.total) + [f"{line.tokens_per_s:.0f} tokens/s"] * bool(
            line.tokens_per_s
        )
        said += [f"{seconds(line.eta)} left"] * (line.eta is not None)
        said += [f"loss {line.loss:.3f}"] * (line.loss is not None)
        bar = ProgressBar(line.total or 1, line.done, width=24) if line.total else Text("...", "dim")
        return [mark, name, bar, Text(", ".join(said), "dim")]


class Lines:
    """A line when a stage starts and ends, and now and then while it runs: for files and pipes."""

    EVERY_S = 15.0

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.board, self.said = stream, Board(), time.time()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: Any) -> None:
        self.stream.flush()

    def __call__(self, event: Event) -> None:
        line = self.board.hear(event)
        if event["event"] == "plan":
            self._say(f"{len(self.board.lines)} stages, {self.board.finished} there already")
        elif line and event["event"] == "stage_start":
            self._say(f"start  {line.label}")
        elif line and event["event"] == "stage_end" and event["status"] != "cached":
            count = f"({self.board.finished}/{len(self.board.lines)})"
            self._say(f"{event['status']:<6} {line.label}  {seconds(line.seconds)}  {count}")
        elif line and event["event"] == "progress" and time.time() - self.said > self.EVERY_S:
            left = f", {seconds(line.eta)} left" if line.eta else ""
            self._say(f"...    {line.label}  {line.done}/{line.total}, {line.tokens_per_s:.0f} tokens/s{left}")

    def _say(self, text: str) -> None:
        self.said = time.time()
        print(time.strftime("%H:%M:%S"), text, file=self.stream, flush=True)


class JsonLines:
    """Every event as one JSON object a line."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *error: Any) -> None:
        self.stream.flush()

    def __call__(self, event: Event) -> None:
        print(json.dumps(finite(event), default=str), file=self.stream, flush=True)


def display(*, as_json: bool) -> Tree | Lines | JsonLines:
    """The display that fits where stdout goes; it keeps its own copy, so that stages may redirect the original."""
    import os

    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    if as_json:
        return JsonLines(stream)
    return Tree(Console(file=stream)) if sys.stdout.isatty() else Lines(stream)
