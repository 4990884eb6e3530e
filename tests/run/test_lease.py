"""Leases: processes that share a storage folder make every artifact once; who dies or is stopped holds nobody up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.racing import STAGES, Step, runner, step

from trimtab.compute import Compute
from trimtab.errors import Stopped
from trimtab.progress import Noting
from trimtab.run.artifact import Node, PlanRunner
from trimtab.run.lease import leased
from trimtab.run.local import LocalRunner, execute
from trimtab.run.on_ray import RayRunner

ROOT = Path(__file__).parents[2]
LONG = 120.0


def started(storage: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
    command = [sys.executable, "-m", "tests.racing", str(storage)]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)


def events(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    said, _ = process.communicate(timeout=LONG)
    return [json.loads(line) for line in said.splitlines()]


def until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not there():
        assert time.monotonic() < end
        time.sleep(0.01)


def ran(storage: Path) -> list[tuple[int, int]]:
    file = storage / "ran.txt"
    return [tuple(map(int, line.split())) for line in file.read_text().splitlines()] if file.exists() else []


def first_node(storage: Path) -> Node:
    run = PlanRunner(Compute(storage=storage, backend="inline"))
    return run.nodes[run(step, Step(number=0), after={}).id]


def test_of_racing_processes_one_makes_each_stage_and_all_end_with_all(tmp_path: Path) -> None:
    racers = [started(tmp_path) for _ in range(3)]
    (tmp_path / "go").touch()
    heard = [events(process) for process in racers]
    assert [process.returncode for process in racers] == [0, 0, 0]
    assert Counter(number for number, _ in ran(tmp_path)) == dict.fromkeys(range(STAGES), 1)
    for own in heard:
        ends = [event for event in own if event["event"] == "stage_end"]
        assert {event["status"] for event in ends} <= {"done", "cached"}
        assert all(event["metrics"] and Path(event["path"]).is_dir() for event in ends)
    assert sum(event["event"] == "stage_start" for own in heard for event in own) == STAGES


@pytest.mark.chaos
def test_a_stage_whose_maker_is_killed_is_made_by_who_waits(tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    (tmp_path / "go").touch()
    first = started(tmp_path)
    until(lambda: bool(ran(tmp_path)))
    second = started(tmp_path)
    said = [json.loads(second.stdout.readline())]
    assert (said[0]["event"], said[0]["stage_id"]) == ("stage_wait", first_node(tmp_path).artifact.id)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    (tmp_path / "hold").unlink()
    said += events(second)
    assert second.returncode == 0
    assert [event["event"] for event in said] == ["stage_wait", *["stage_start", "stage_end"] * STAGES]
    assert Counter(ran(tmp_path)) == {(0, first.pid): 1} | {(n, second.pid): 1 for n in range(STAGES)}


def test_what_another_made_meanwhile_is_found_and_told_of_once(tmp_path: Path) -> None:
    node, said = first_node(tmp_path), []
    other = LocalRunner(Compute(storage=tmp_path, backend="inline"))
    other(step, Step(number=0), after={})
    other.wait()
    execute(node, lambda *_: pytest.fail("it was there"), Noting(said.append))
    (event,) = said
    assert (event["event"], event["status"], event["label"]) == ("stage_end", "cached", "step")
    assert event["metrics"]["number"] == 0
    assert len(ran(tmp_path)) == 1


def test_a_stop_ends_the_waiting_and_leaves_the_lease_alone(tmp_path: Path) -> None:
    node, said, over = first_node(tmp_path), [], threading.Event()

    def hear(event: dict[str, Any]) -> None:
        said.append(event["event"])
        over.set()

    with leased(node.artifact.lease, waits=lambda: None, stopped=lambda: False):
        with pytest.raises(Stopped, match="while another process made it"):
            execute(node, lambda *_: {}, Noting(hear), stopped=over.is_set)
        assert said == ["stage_wait"]
    execute(node, lambda *_: {"number": 0}, Noting(lambda event: None), stopped=over.is_set)
    assert node.artifact.ready


def test_an_interrupt_ends_the_waiting_of_a_local_run(tmp_path: Path) -> None:
    def interrupt(event: dict[str, Any]) -> None:
        assert event["event"] == "stage_wait"
        signal.raise_signal(signal.SIGINT)

    run = runner(tmp_path, sink=interrupt)
    with leased(first_node(tmp_path).artifact.lease, waits=lambda: None, stopped=lambda: False):
        with pytest.raises(KeyboardInterrupt):
            run.wait()
    assert ran(tmp_path) == []


def test_a_failure_elsewhere_in_a_run_ends_its_waiting(tmp_path: Path) -> None:
    from tests.run.test_on_ray import Named, light

    heard: list[str] = []
    run = RayRunner(Compute(storage=tmp_path), sink=lambda event: heard.append(event["event"]))
    held = run(light, Named(name="held"), after={})
    run(light, Named(name="bad"), after={})
    with leased(held.lease, waits=lambda: None, stopped=lambda: False):
        with pytest.raises(Exception, match="bad luck"):
            run.wait()
    assert not held.ready
