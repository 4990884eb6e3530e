"""What a running search looks like: a live table of trials that fits the terminal, or plain lines off one."""

from __future__ import annotations

import statistics
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trimtab.display import MARKS, Lines, Tree, display, live
from trimtab.run.log import Listener
from trimtab.search.board import brief_names, text_of
from trimtab.search.job import Search
from trimtab.search.winner import stamp
from trimtab.stage_board import Event, seconds

ENDED = ("done", "pruned", "failed")
BAR, FIELD, ROOM = 8, 14, 64
"""Columns of a bar and of a searched field, and those that all else takes."""
STATES = MARKS | {"pruned": "[yellow]▪[/]"}


@dataclass
class Line:
    """A trial as it stands; `at` is what it is doing."""

    number: int
    values: dict[str, Any]
    state: str = "running"
    progress: float = 0.0
    signal: float | None = None
    objectives: tuple[float, ...] = ()
    seconds: float = 0.0
    at: str = ""
    error: str = ""
    started: float = 0.0


@dataclass
class Tally:
    """Every trial that this run of a search has heard of, kept by its events."""

    search: Search
    trials: int = 0
    concurrent: int = 0
    have: int = 0
    started: float = 0.0
    lines: dict[int, Line] = field(default_factory=dict)

    def hear(self, event: Event) -> Line | None:
        """The line of the trial that the event is about."""
        kind, at = event["event"], event.get("time", time.time())
        if kind == "search_plan":
            self.trials, self.concurrent, self.have = event["trials"], event["concurrent"], event["have"]
            self.started = at
        if "trial" not in event or not kind.startswith("trial_"):
            return None
        line = self.lines.setdefault(event["trial"], Line(event["trial"], event.get("values", {}), started=at))
        if kind == "trial_result":
            line.progress, line.at = event.get("progress", line.progress), event.get("at") or line.at
            line.signal = event.get("signal", line.signal)
        elif kind == "trial_end":
            line.state, line.seconds = event["status"], event.get("seconds") or 0.0
            line.objectives, line.error = tuple(event.get("objectives") or ()), event.get("error") or ""
        return line

    @property
    def ended(self) -> int:
        """Trials that count, those of earlier runs too."""
        return self.have + sum(line.state in ENDED for line in self.lines.values())

    def best(self) -> Line | None:
        """The best finished trial of this run, by the first metric."""
        sign = 1 if self.search.spec.modes[0] == "max" else -1
        done = [line for line in self.lines.values() if line.objectives]
        return max(done, key=lambda line: (sign * line.objectives[0], -line.number), default=None)

    def left(self, now: float) -> float | None:
        """Seconds left, from what the trials so far took; never more than the search may take.

        The first to run make what all share, so they count only until others have ended.
        """
        part = sum(1.0 if line.state in ENDED else line.progress for line in self.lines.values())
        todo, took = max(0.0, self.trials - self.have - part), now - self.started
        minutes = self.search.spec.budget.minutes
        bounds = [60 * minutes - took] if minutes else []
        if later := self._later():
            bounds.append(todo * statistics.mean(later) / self.concurrent)
        elif part > 0.1:
            bounds.append(took * todo / part)
        return max(0.0, min(bounds)) if bounds else None

    def _later(self) -> list[float]:
        """Seconds of the ended trials that started when another one had ended."""
        ended = [line for line in self.lines.values() if line.state in ENDED]
        first = min((line.started + line.seconds for line in ended), default=0.0)
        return [line.seconds for line in ended if line.started >= first]

    def said(self, line: Line) -> str:
        """A trial's values, in few words."""
        names = brief_names(list(self.search.spec.space))
        return ", ".join(f"{names[path]} {text_of(value)}" for path, value in line.values.items() if path in names)

    def headline(self, now: float) -> str:
        left, best = self.left(now), self.best()
        parts = [f"{self.ended} of {self.trials} trials", f"about {seconds(left)} left" if left is not None else ""]
        if best:
            pairs = zip(self.search.spec.metrics, best.objectives, strict=True)
            told = ", ".join(f"{name} {value:.4f}" for name, value in pairs)
            parts.append(f"best so far: {told} (trial {best.number}: {self.said(best)})")
        return "; ".join(filter(None, parts))


class SearchScreen:
    """The live table of a terminal: running trials, then the best; after them the stages of the final evaluation."""

    def __init__(self, console: Console, *, search: Search) -> None:
        self.tally, self.console, self.final = Tally(search), console, None
        self.live = live(console, self.drawn)

    def __call__(self, event: Event) -> None:
        if event["event"] == "plan":
            self.final = Tree(self.console)
        if self.final:
            self.final(event)
        self.tally.hear(event)

    def drawn(self) -> RenderableType:
        if self.final:
            return Group(Text("final evaluation on test, of the best and the default", "bold"), self.final.drawn())
        search = self.tally.search
        head = Text(f"{search.id}: {self.tally.headline(time.time())}", "bold")
        return Group(head, Text(stamp(search), "dim"), self._table(self.console.height - 6))

    def _order(self) -> list[Line]:
        sign = -1 if self.tally.search.spec.modes[0] == "max" else 1
        order = {"running": 0, "done": 1}

        def key(line: Line) -> tuple[int, float, int]:
            value = sign * line.objectives[0] if line.objectives else 0.0
            return order.get(line.state, 2), value, -line.number

        return sorted(self.tally.lines.values(), key=key)

    def _table(self, room: int) -> RenderableType:
        spec, lines, width = self.tally.search.spec, self._order(), self.console.width
        names = brief_names(list(spec.space))
        paths = list(spec.space)[: max(1, (width - ROOM) // FIELD)]
        table = Table(box=None, header_style="bold", padding=(0, 1), expand=False)
        whats = [metric.rpartition("/")[2] for metric in spec.metrics]
        for name, least in (("", 1), ("trial", 5), *((names[path], 6) for path in paths), *((w, 6) for w in whats)):
            table.add_column(name, no_wrap=True, overflow="ellipsis", min_width=least, max_width=FIELD * 2)
        for name, least in (("held out", 5), ("", BAR), ("time", 8), ("", 4)):
            table.add_column(name, no_wrap=True, overflow="ellipsis", min_width=least)
        for line in lines[: max(1, room)]:
            table.add_row(*self._row(line, paths))
        further = len(lines) - max(1, room)
        return Group(table, Text(f"{further} more", "dim")) if further > 0 else table

    def _row(self, line: Line, paths: list[str]) -> list[RenderableType]:
        running = line.state == "running"
        took = time.time() - line.started if running else line.seconds
        objectives = [f"{value:.4f}" for value in line.objectives] or [""] * len(self.tally.search.spec.metrics)
        note = line.at if running else line.error.partition("\n")[0]
        return [
            Text.from_markup(STATES.get(line.state, "")),
            str(line.number),
            *(Text(text_of(line.values[path]) if path in line.values else "") for path in paths),
            *objectives,
            "" if line.signal is None else f"{line.signal:.3f}",
            ProgressBar(1.0, line.progress, width=BAR) if running else Text(line.state, "dim"),
            Text(seconds(took), "dim"),
            Text(note, "red" if line.error else "dim"),
        ]


class SearchLines(Lines):
    """A line when a trial starts and ends, with the best so far; then the stages of the final evaluation."""

    def __init__(self, stream: TextIO, *, search: Search) -> None:
        super().__init__(stream)
        self.tally, self.final = Tally(search), False

    def __call__(self, event: Event) -> None:
        line, kind = self.tally.hear(event), event["event"]
        if kind == "search_plan":
            there = f", {self.tally.have} there already" * bool(self.tally.have)
            self._say(
                f"search {self.tally.search.id}: {self.tally.trials} trials, {event['concurrent']} at once{there}"
            )
            self._say(stamp(self.tally.search))
        elif kind == "trial_start" and line:
            self._say(f"start    trial {line.number}  {self.tally.said(line)}")
        elif kind == "trial_end" and line:
            pairs = zip(self.tally.search.spec.metrics, line.objectives, strict=False)
            told = "  ".join(f"{name} {value:.4f}" for name, value in pairs)
            note = f"  {line.error.partition(chr(10))[0]}" if line.error else ""
            self._say(f"{line.state:<8} trial {line.number}  {seconds(line.seconds)}  {told}{note}")
            self._say(f"         {self.tally.headline(event.get('time', time.time()))}")
        elif kind == "plan":
            self.final = True
            self._say("final evaluation on test, of the best and the default")
        if self.final and line is None:
            super().__call__(event)


def display_of(search: Search, *, as_json: bool) -> AbstractContextManager[Listener]:
    """The display of a search that fits where stdout goes."""
    screen, lines = partial(SearchScreen, search=search), partial(SearchLines, search=search)
    return display(as_json=as_json, screen=screen, lines=lines)
