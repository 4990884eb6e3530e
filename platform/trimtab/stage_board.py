"""What the events of a run say of its stages, as any display shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trimtab.progress import TROUBLES

Event = dict[str, Any]


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
    trouble: str = ""

    def eta(self, now: float) -> float | None:
        """Seconds left, from the share done."""
        if self.state != "running" or not self.done:
            return None
        return max(0.0, (now - self.started) * (self.total - self.done) / self.done)

    def said(self, now: float) -> str:
        """How far it is, how fast, how long still."""
        left = self.eta(now)
        parts = [
            f"{self.done}/{self.total}" if self.total else "",
            f"{seconds(left)} left" if left else "",
            f"{self.tokens_per_s:.0f} tokens/s" if self.tokens_per_s else "",
            f"loss {self.loss:.3f}" if isinstance(self.loss, float) else "",
            self.trouble,
        ]
        return ", ".join(filter(None, parts))


@dataclass
class Board:
    """The state of every stage, kept by the events of a run, and what all of them wait for."""

    lines: dict[str, Line] = field(default_factory=dict)
    waits: str = ""

    def hear(self, event: Event) -> Line | None:
        """The line of the stage that the event is about."""
        kind, line = event["event"], self.lines.get(event.get("stage_id", ""))
        if kind == "nodes_wait":
            self.waits = event["text"]
        elif kind == "stage_start":
            self.waits = ""
        if kind == "plan":
            self.lines = {
                stage["stage_id"]: Line(stage["label"], "have" if stage["have"] else "waiting")
                for stage in event["stages"]
            }
        if line is None:
            return None
        if kind == "stage_start":
            line.state, line.started = "running", event["time"]
        elif kind == "progress":
            line.done, line.total, line.tokens_per_s = event["done"], event["total"], event["tokens_per_s"]
        elif kind == "metrics":
            line.loss = event["values"].get("loss", line.loss)
        elif kind == "stage_wait":
            line.state = "elsewhere"
        elif kind in TROUBLES:
            line.trouble, line.done = event["text"], 0
        elif kind == "stage_end" and event["status"] == "cached":
            line.state = "have"
        elif kind == "stage_end":
            line.state, line.seconds = event["status"], event["seconds"]
        return line

    @property
    def finished(self) -> int:
        return sum(line.state in ("done", "have") for line in self.lines.values())

    def groups(self) -> dict[str, list[Line]]:
        """Lines by the part of the label before the last slash, such as `seed 0`."""
        groups: dict[str, list[Line]] = {}
        for line in self.lines.values():
            groups.setdefault(line.label.rpartition(" / ")[0], []).append(line)
        return groups


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f} s" if value < 100 else f"{int(value) // 60} min {int(value) % 60:02d} s"


def state_of(lines: list[Line]) -> str:
    """done and waiting when all of a group are; else running."""
    states = {line.state for line in lines}
    if states <= {"done", "have"}:
        return "done"
    return "waiting" if states == {"waiting"} else "running"
