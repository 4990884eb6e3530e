"""The desk between driver and workers: what is handed out, to which life, and when a stage is over."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from trimtab.errors import StageError
from trimtab.training.desk import Desk
from trimtab.training.postmortem import Beat, End, Gone, Place

TASK = {"stage_id": "s", "out": "/nowhere"}
FINE, OWN, ECHO = End({"a": 1.0}), End.failed(StageError("own")), End.failed(RuntimeError("connection closed by peer"))


async def waits(call) -> bool:
    """Whether a call is still not answered after every other one had its turn."""
    task = asyncio.ensure_future(call)
    for _ in range(20):
        await asyncio.sleep(0)
    done = task.done()
    task.cancel()
    return not done


async def opened(desk: Desk, life: str = "a", **task) -> None:
    await desk.begin(0, life)
    await desk.give(0, TASK | task)


async def end(desk: Desk, rank: int, found: End, ticket: tuple = ("a", 0)) -> None:
    await desk.end(0, rank, ticket=ticket, end=found)


def run(test) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


def test_a_stage_goes_to_every_rank_once_and_ends_as_on_rank_0():
    async def test():
        desk = Desk(1, 2)
        await opened(desk, name="x")
        for _ in range(2):
            number, task = await desk.next(0, "a", -1)
            assert (number, task["name"], task["attempt"], task["ticket"]) == (0, "x", 0, ("a", 0))
        assert await waits(desk.next(0, "a", 0))
        await end(desk, 1, End())
        assert await waits(desk.outcome(0))
        await end(desk, 0, FINE)
        assert await desk.outcome(0) == FINE

    run(test())


def test_workers_wait_for_a_stage_and_the_driver_for_its_end():
    async def test():
        desk = Desk(1, 1)
        await desk.begin(0, "a")
        got = asyncio.ensure_future(desk.next(0, "a", -1))
        await desk.give(0, TASK)
        assert (await got)[0] == 0
        outcome = asyncio.ensure_future(desk.outcome(0))
        await end(desk, 0, FINE)
        assert await outcome == FINE
        assert await waits(desk.next(0, "a", 0))
        await desk.give(0, TASK)
        assert (await desk.next(0, "a", 0))[0] == 1

    run(test())


def test_groups_do_not_mix():
    async def test():
        desk = Desk(2, 1)
        await opened(desk)
        await desk.begin(1, "b")
        assert await waits(desk.next(1, "b", -1))
        assert (await desk.next(0, "a", -1))[0] == 0

    run(test())


def test_a_new_life_gets_the_interrupted_stage_again():
    async def test():
        desk = Desk(1, 2)
        await opened(desk)
        await desk.next(0, "a", -1)
        for _ in range(2):
            await desk.begin(0, "b")
        number, task = await desk.next(0, "b", -1)
        assert (number, task["attempt"], task["ticket"]) == (0, 1, ("b", 0))
        assert (await desk.next(0, "b", -1))[1]["attempt"] == 1

    run(test())


def test_a_stage_that_nobody_had_taken_is_a_first_attempt_for_the_new_life():
    async def test():
        desk = Desk(1, 2)
        await opened(desk)
        await desk.begin(0, "b")
        assert (await desk.next(0, "b", -1))[1]["attempt"] == 0

    run(test())


def test_a_rank_that_had_ended_before_the_restart_ends_again():
    async def test():
        desk = Desk(1, 2)
        await opened(desk)
        await desk.next(0, "a", -1)
        await end(desk, 0, FINE)
        await desk.begin(0, "b")
        await end(desk, 1, FINE, ("b", 0))
        assert await waits(desk.outcome(0))
        await end(desk, 0, FINE, ("b", 0))
        assert await desk.outcome(0) == FINE

    run(test())


def test_a_restart_after_the_end_repeats_nothing():
    async def test():
        desk = Desk(1, 2)
        await opened(desk)
        await desk.next(0, "a", -1)
        for rank in (0, 1):
            await end(desk, rank, FINE)
        await desk.begin(0, "b")
        assert await waits(desk.next(0, "b", -1))
        assert await desk.outcome(0) == FINE

    run(test())


def test_an_error_of_one_rank_ends_the_stage_though_the_other_hangs():
    async def test():
        desk = Desk(1, 2)
        await opened(desk)
        await end(desk, 1, OWN)
        assert await desk.outcome(0) == OWN

    run(test())


def test_the_echo_of_a_death_decides_nothing_and_the_stage_is_retried():
    async def test():
        desk = Desk(1, 2)
        await opened(desk)
        await desk.next(0, "a", -1)
        await end(desk, 0, ECHO)
        assert await waits(desk.outcome(0))
        assert await desk.trouble(0) == ECHO
        await desk.begin(0, "b")
        (event,) = await desk.said()
        assert event["text"].endswith("those before: RuntimeError: connection closed by peer")
        for rank in (0, 1):
            await end(desk, rank, FINE, ("b", 0))
        assert await desk.outcome(0) == FINE

    run(test())


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_error_that_says_more_wins_over_its_echo(order):
    async def test():
        desk = Desk(1, 2)
        await opened(desk)
        for rank in order:
            await end(desk, rank, OWN if rank else ECHO)
        assert await desk.outcome(0) == OWN

    run(test())


def test_an_error_met_by_every_rank_is_no_echo():
    async def test():
        desk = Desk(1, 2)
        await opened(desk)
        for rank in (0, 1):
            await end(desk, rank, ECHO)
        assert await desk.outcome(0) == ECHO

    run(test())


def test_a_broken_life_is_given_nothing_more_but_the_next_one_is():
    async def test():
        desk = Desk(1, 2)
        await opened(desk)
        await end(desk, 0, OWN)
        await desk.give(0, TASK)
        assert await waits(desk.next(0, "a", 0))
        await desk.begin(0, "b")
        assert (await desk.next(0, "b", -1))[1] == TASK | {"attempt": 0, "ticket": ("b", 1)}

    run(test())


def test_a_late_end_of_an_old_stage_or_life_is_not_heard():
    async def test():
        desk = Desk(1, 2)
        await opened(desk)
        await end(desk, 0, OWN)
        await desk.give(0, TASK)
        await end(desk, 1, ECHO)
        await desk.begin(0, "b")
        await end(desk, 1, OWN, ("a", 1))
        assert await waits(desk.outcome(0))
        assert (await desk.next(0, "b", -1))[0] == 1

    run(test())


def test_a_worker_alone_lives_on_after_an_error():
    async def test():
        desk = Desk(1, 1)
        await opened(desk)
        await end(desk, 0, ECHO)
        assert await desk.outcome(0) == ECHO
        await desk.give(0, TASK)
        assert (await desk.next(0, "a", 0))[0] == 1

    run(test())


def test_events_are_handed_over_once_and_in_order():
    async def test():
        desk = Desk(1, 1)
        for i in range(3):
            await desk.say({"i": i})
        assert await desk.said() == [{"i": 0}, {"i": 1}, {"i": 2}]
        assert await desk.said() == []

    run(test())


def sign(heard: int = 0, *, free: int = 8) -> Beat:
    return Beat(time.time(), 2**30, free * 2**30, 16 * 2**30, heard, heard)


async def beat(desk: Desk, rank: int, found: Beat, ticket: tuple = ("a", 0)) -> None:
    await desk.beat(0, rank, ticket=ticket, beat=found)


DEAD = Gone("ActorDiedError", "its process ended")


def test_a_death_is_told_once_a_life_and_the_stage_is_given_out_again():
    async def test():
        desk = Desk(1, 2)
        await opened(desk)
        await desk.next(0, "a", -1)
        await beat(desk, 1, sign(3))
        await end(desk, 0, ECHO)
        for _ in range(2):
            await desk.died(0, {1: DEAD})
        (event,) = await desk.said()
        assert (event["event"], event["stage_id"]) == ("worker_died", "s")
        assert (event["cause"], event["rank"], event["step"]) == ("killed", 1, 3)
        found = await desk.trouble(0)
        assert (found.cause, found.rank) == ("killed", 1)
        await desk.begin(0, "b", 1)
        (event,) = await desk.said()
        assert (event["event"], event["attempt"], event["workers"]) == ("stage_restart", 1, 1)
        assert event["text"].endswith(
            "that replace those before: rank 1 died at step 3: killed (its process ended without a word)"
        )
        await end(desk, 0, FINE, ("b", 0))
        assert await desk.outcome(0) == FINE, "the new life has one worker"

    run(test())


def test_a_stage_that_ran_out_of_memory_is_over():
    async def test():
        desk = Desk(1, 2)
        await opened(desk)
        await desk.next(0, "a", -1)
        await beat(desk, 1, sign(free=0))
        await end(desk, 0, ECHO)
        await desk.died(0, {1: DEAD})
        found = await desk.outcome(0)
        assert (found.kind, found.cause, found.rank) == ("OutOfMemory", "out of memory", 1)
        await desk.give(0, TASK)
        assert await waits(desk.next(0, "a", 0)), "whoever is left of the old life"
        assert await desk.failures(0) == 0, "nobody has come for it"
        await desk.begin(0, "b")
        assert (await desk.next(0, "b", -1))[1]["attempt"] == 0
        assert await desk.failures(0) is None

    run(test())


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")])
def test_memory_that_is_refused_is_no_echo(error: Exception):
    found = End.failed(error, 1)
    assert (found.kind, found.echo, found.cause, found.rank) == ("OutOfMemory", False, "out of memory", 1)
    assert type(error).__name__ in found.error


def test_who_falls_silent_is_found_where_only_an_echo_was_heard(monkeypatch):
    monkeypatch.setattr("trimtab.training.desk.SILENT_S", 0.05)

    async def test():
        desk = Desk(1, 3)
        await opened(desk)
        await desk.next(0, "a", -1)
        for rank in (0, 1, 2):
            await beat(desk, rank, sign())
        await end(desk, 0, ECHO)
        told = asyncio.ensure_future(desk.died(0, {0: Gone("StageError", "closed by peer", dead=False)}))
        await asyncio.sleep(0.01)
        await beat(desk, 1, sign())
        await told
        (event,) = await desk.said()
        assert (event["rank"], event["cause"]) == (2, "killed")

    run(test())


@pytest.mark.parametrize("last", [FINE, OWN, ECHO])
def test_a_rank_that_ended_meanwhile_is_not_taken_for_dead(monkeypatch, last: End):
    monkeypatch.setattr("trimtab.training.desk.SILENT_S", 0.05)

    async def test():
        desk = Desk(1, 3)
        await opened(desk)
        await desk.next(0, "a", -1)
        for rank in (0, 1):
            await beat(desk, rank, sign())
        await end(desk, 0, ECHO)
        told = asyncio.ensure_future(desk.died(0, {0: Gone("StageError", "closed by peer", dead=False)}))
        await asyncio.sleep(0.01)
        await end(desk, 1, last)
        await told
        assert await desk.said() == []

    run(test())


def test_lives_that_a_stage_cost_are_counted_but_for_nodes_taken_away():
    async def test():
        desk = Desk(1, 1)
        await opened(desk)
        counted = []
        for life, gone in (("b", DEAD), ("c", Gone("ActorDiedError", "", preempted=True)), ("d", DEAD)):
            await desk.next(0, desk.groups[0].life, -1)
            await desk.died(0, {0: gone})
            await desk.begin(0, life)
            counted.append(await desk.failures(0))
        assert counted == [1, 1, 2]
        await desk.give(0, TASK)
        await desk.died(0, {0: DEAD})
        assert await desk.failures(0) == 0, "no stage is charged for workers that die idle"

    run(test())


def test_what_earlier_attempts_printed_says_nothing_of_a_death(tmp_path: Path):
    async def test():
        desk, log = Desk(1, 1), tmp_path / "log.txt"
        log.write_text("DefaultCPUAllocator: can't allocate memory\n")
        await opened(desk, out=str(tmp_path))
        for life, printed, cause in (
            ("b", "", "killed"),
            ("c", "*** SIGSEGV received\n", "segfault"),
            ("d", "", "killed"),
        ):
            await desk.next(0, desk.groups[0].life, -1)
            log.write_text(log.read_text() + printed)
            await desk.died(0, {0: DEAD})
            (event,) = [said for said in await desk.said() if said["event"] == "worker_died"]
            assert event["cause"] == cause
            await desk.begin(0, life)

    run(test())


@dataclass(frozen=True)
class Elsewhere:
    """A log that the desk has to ask for."""

    text: str | None

    async def read(self) -> str | None:
        await asyncio.sleep(0)
        return self.text


@pytest.mark.parametrize(
    ("text", "cause", "shown"),
    [
        ("*** SIGSEGV received at", "segfault", "*** SIGSEGV received at"),
        (None, "killed", "its process ended and its log is out of reach"),
    ],
)
def test_what_a_rank_printed_on_another_node_tells_of_its_death(text: str | None, cause: str, shown: str):
    async def test():
        desk = Desk(1, 3)
        await opened(desk)
        await desk.next(0, "a", -1)
        await desk.away(0, 1, ticket=("a", 0), log=Elsewhere(text))
        await desk.away(0, 2, ticket=("a", 0), log=Elsewhere("alive"))
        await desk.away(0, 1, ticket=("before", 0), log=Elsewhere("of another life"))
        await desk.died(0, {1: DEAD})
        (event,) = await desk.said()
        assert (event["cause"], event["shown_by"]) == (cause, shown)
        assert (await desk.trouble(0)).logs == ({1: text} if text else {})
        await desk.begin(0, "b")
        await desk.next(0, "b", -1)
        await desk.died(0, {1: DEAD})
        assert (await desk.said())[-1]["shown_by"] == "its process ended without a word", "it may be nearer now"

    run(test())


def test_of_a_stage_that_hung_every_log_is_brought():
    async def test():
        desk = Desk(1, 2)
        await opened(desk)
        await desk.next(0, "a", -1)
        for rank in (0, 1):
            await desk.away(0, rank, ticket=("a", 0), log=Elsewhere(f"stacks of {rank}"))
        await desk.hangs(0)
        await desk.died(0, {0: DEAD, 1: DEAD})
        assert (await desk.trouble(0)).logs == {0: "stacks of 0", 1: "stacks of 1"}

    run(test())


def test_a_stage_hangs_when_no_rank_gets_on():
    async def test():
        desk = Desk(1, 2)
        places = [Place(pid, "node") for pid in (7, 8)]
        for place in places:
            await desk.begin(0, "a", place=place)
        await opened(desk)
        assert await desk.idle(0) == 0, "nobody is at it"
        await desk.next(0, "a", -1)
        desk.groups[0].moved -= 100
        assert await desk.idle(0) > 90, "nobody has said a word"
        for rank in (0, 1):
            await beat(desk, rank, sign(4 - rank))
        desk.groups[0].moved -= 100
        await beat(desk, 1, sign(3))
        assert await desk.idle(0) > 90, "a beat that says nothing new is no progress"
        await beat(desk, 1, sign(4))
        assert await desk.idle(0) < 60
        await beat(desk, 1, sign(3))
        assert await desk.hangs(0) == places
        for rank in (0, 1):
            await end(desk, rank, OWN)
        assert await desk.idle(0) == 0

    run(test())


@pytest.mark.parametrize(
    ("steps", "rank", "known"),
    [
        ((4, 3), 1, True),
        ((3, 4), 0, True),
        ((3, 3), 0, False),
        ((3, None), 0, False),
        ((3, "no beat"), 1, True),
        (("no beat", "no beat"), 0, False),
        ((None, "ended"), 0, True),
    ],
)
def test_who_holds_up_the_others_is_named_only_where_it_is_known(steps: tuple, rank: int, known: bool):
    async def test():
        desk = Desk(1, 2)
        await opened(desk)
        await desk.next(0, "a", -1)
        for number, step in enumerate(steps):
            if step == "ended":
                await end(desk, number, FINE)
            elif step != "no beat":
                await beat(desk, number, replace(sign(7 * number), step=step))
        await desk.hangs(0)
        await desk.died(0, {0: DEAD, 1: DEAD})
        (event,) = await desk.said()
        assert (event["cause"], event["rank"]) == ("hang", rank)
        assert ("is not known" in event["shown_by"]) != known

    run(test())


def test_what_a_rank_meets_when_the_other_was_found_dead_is_not_told_as_the_cause():
    async def test():
        desk = Desk(1, 2)
        await opened(desk)
        await desk.next(0, "a", -1)
        await desk.hangs(0)
        await desk.died(0, {0: DEAD})
        await end(desk, 1, ECHO)
        assert (await desk.trouble(0)).cause == "hang"
        await desk.begin(0, "b")
        assert "no rank of its stage got on" in (await desk.said())[-1]["text"]

    run(test())


def test_beats_of_an_old_life_or_stage_are_not_heard():
    async def test():
        desk = Desk(1, 1)
        await opened(desk)
        await desk.next(0, "a", -1)
        await beat(desk, 0, sign(), ("x", 0))
        await beat(desk, 0, sign(), ("a", 1))
        await desk.died(0, {0: DEAD})
        (event,) = await desk.said()
        assert (event["step"], event["rss"]) == (None, [])

    run(test())


def test_the_outcome_comes_with_what_was_said_and_not_asked_for():
    async def test():
        desk = Desk(1, 1)
        await desk.begin(0, "a")
        outcome = asyncio.ensure_future(desk.work(0, TASK))
        number, _ = await desk.next(0, "a", -1)
        await desk.say({"event": "progress"})
        after = asyncio.ensure_future(desk.next(0, "a", number, rank=0, end=FINE))
        assert await outcome == (FINE, [{"event": "progress"}])
        assert await desk.said() == []
        assert await waits(asyncio.shield(after))
        await desk.close()
        assert await after == (number, None)

    run(test())
