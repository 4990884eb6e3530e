"""What ended a worker, judged by what Ray said, by signs of life and by its log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trimtab.training.postmortem import Beat, Gone, examined, lengths, out_of_memory, printed, since

GIB = 2**30
UNSAID = Gone("ActorDiedError", "exit detail: (1) SIGKILL by OOM killer due to high memory usage (3) SIGSEGV or other")


def beats(*rss: float, free: float = 8, total: float = 16) -> list[Beat]:
    """Signs of life a second apart, of a process that holds so many GiB."""
    left = int(free * GIB), int(total * GIB)
    return [Beat(100.0 + i, int(size * GIB), *left, 3 + i, i) for i, size in enumerate(rss)]


def cause(gone: Gone = UNSAID, found: list[Beat] | None = None, log: str = "") -> str:
    return examined(1, gone, found or [], printed=log).cause


def test_a_death_tells_memory_step_and_a_way_out() -> None:
    death = examined(1, UNSAID, beats(1, 2.5, 6, free=0.25), printed="")
    assert (death.rank, death.cause, death.step) == (1, "out of memory", 5)
    assert death.rss == [(-2.0, 1.0), (-1.0, 2.5), (0.0, 6.0)]
    event = death.as_event()
    assert (event["event"], event["cause"], event["rank"], event["free"]) == ("worker_died", "out of memory", 1, 0.25)
    assert "lower compute.micro_batch" in event["way_out"]
    said = str(death)
    assert "rank 1 died at step 5: out of memory" in said
    assert "it held 1.00, 2.50, 6.00 GiB over the last 2 s; 0.25 GiB were left on its node" in said


@pytest.mark.parametrize(
    ("rss", "free", "found"),
    [
        ((1, 1, 1), 8, "killed"),
        ((1, 1, 1), 0.5, "out of memory"),
        ((1, 2, 5), 2, "out of memory"),
        ((1, 2, 5), 4, "killed"),
        ((5, 1), 0.9, "killed"),
    ],
)
def test_a_silent_end_is_judged_by_the_memory_that_was_left(rss: tuple[float, ...], free: float, found: str) -> None:
    assert cause(found=beats(*rss, free=free)) == found


@pytest.mark.parametrize(
    ("gone", "found"),
    [
        (Gone("ActorDiedError", "The actor died because its node has died. Node Id: 0"), "lost node"),
        (Gone("ActorDiedError", "", preempted=True), "lost node"),
        (Gone("ActorDiedError", "Worker exit type: NODE_OUT_OF_MEMORY Worker exit detail: ..."), "out of memory"),
        (Gone("OutOfMemoryError", "Task was killed due to the node running low on memory"), "out of memory"),
        (Gone("WorkerHealthCheckTimeoutError", "A worker health check has been hanging", dead=False), "hang"),
        (UNSAID, "killed"),
    ],
)
def test_what_ray_knows_counts_first(gone: Gone, found: str) -> None:
    assert cause(gone) == found


@pytest.mark.parametrize(
    ("log", "found"),
    [
        ("Fatal Python error: Segmentation fault\n\nThread 0x1", "segfault"),
        ("Fatal Python error: Bus error\n", "segfault"),
        ("Fatal Python error: Aborted\n", "segfault"),
        (
            "terminate called after throwing an instance of 'std::bad_alloc'\nFatal Python error: Aborted\n",
            "out of memory",
        ),
        ("Segmentation faults are discussed in this text\n", "killed"),
    ],
)
def test_a_log_says_whether_it_crashed(log: str, found: str) -> None:
    assert cause(log=log) == found


def test_a_log_that_is_out_of_reach_is_not_taken_for_silence() -> None:
    shown = [examined(1, UNSAID, [], printed=log).shown_by for log in ("", None)]
    assert shown == ["its process ended without a word", "its process ended and its log is out of reach"]
    gone = Gone("ActorDiedError", "The actor died because its node has died.")
    assert examined(1, gone, [], printed=None).cause == "lost node"


def test_of_a_long_log_the_end_is_read(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("a" * 2**20 + "end")
    assert since(tmp_path / "log.txt", 0) == "a" * (2**20 - 3) + "end"
    assert since(tmp_path / "log.txt", 2**20) == "end"


def test_what_an_earlier_attempt_printed_is_not_read_again(tmp_path: Path) -> None:
    log = tmp_path / "rank1.log.txt"
    assert printed(tmp_path, 1, lengths(tmp_path)) == ""
    log.write_text("before\n")
    before = lengths(tmp_path)
    log.write_text("before\nnow\n")
    assert printed(tmp_path, 1, before) == "now\n"
    assert printed(tmp_path, 1, {}) == "before\nnow\n"


def test_who_the_watchdog_ended_hung() -> None:
    death = examined(1, UNSAID, beats(1, free=0), printed="", hung="nobody got on for 61 s")
    assert (death.cause, death.shown_by) == ("hang", "nobody got on for 61 s")


def test_a_real_crash_is_read_from_what_python_leaves(tmp_path: Path) -> None:
    code = "import faulthandler, ctypes; faulthandler.enable(file=2); ctypes.string_at(0)"
    with (tmp_path / "log.txt").open("w") as log:
        assert subprocess.run([sys.executable, "-c", code], stderr=log, check=False).returncode == -11
    assert cause(log=printed(tmp_path, 0, {})) == "segfault"


def test_memory_that_torch_and_python_refuse_is_known() -> None:
    for call in (lambda: torch.empty(2**55), lambda: bytearray(2**55)):
        with pytest.raises((RuntimeError, MemoryError)) as refused:
            call()
        assert out_of_memory(type(refused.value).__name__, str(refused.value))
    assert out_of_memory("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB")
    assert not out_of_memory("RuntimeError", "mat1 and mat2 shapes cannot be multiplied")
