"""The desk between driver and workers: what is handed out, to which life, and when a stage is over."""

from __future__ import annotations

import asyncio
import time

import pytest

from trimtab.errors import StageError
from trimtab.training.desk import Desk, End
from trimtab.training.postmortem import Beat, Gone

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
    await desk.give(0, {"stage_id": "s", "out": "/nowhere"} | task)


async def end(desk: Desk, rank: int, found: End, ticket: tuple = ("a", 0)) -> None:
    await desk.end(0, rank, ticket=ticket, end=found)


def run(test) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


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
        await desk.give(0, {})
        assert (await got)[0] == 0
        outcome = asyncio.ensure_future(desk.outcome(0))
        await end(desk, 0, FINE)
        assert await outcome == FINE
        assert await waits(desk.next(0, "a", 0))
        await desk.give(0, {})
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
        await desk.give(0, {})
        assert await waits(desk.next(0, "a", 0))
        await desk.begin(0, "b")
        assert (await desk.next(0, "b", -1))[1] == {"attempt": 0, "ticket": ("b", 1)}

    run(test())


def test_a_late_end_of_an_old_stage_or_life_is_not_heard():
    async def test():
        desk = Desk(1, 2)
        await opened(desk)
        await end(desk, 0, OWN)
        await desk.give(0, {})
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
        await desk.give(0, {})
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


def sign(heard: int = 0, *, free: int = 8, pid: int = 7) -> Beat:
    return Beat(time.time(), 2**30, free * 2**30, 16 * 2**30, heard, heard, pid, "node")


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
        await desk.give(0, {"stage_id": "s", "out": "/nowhere"})
        assert await desk.untouched(0)
        await desk.begin(0, "b")
        assert (await desk.next(0, "b", -1))[1]["attempt"] == 0
        assert not await desk.untouched(0)

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


def test_a_stage_hangs_when_no_rank_gets_on():
    async def test():
        desk = Desk(1, 2)
        await opened(desk)
        assert await desk.idle(0) == 0, "nobody is at it"
        await desk.next(0, "a", -1)
        for rank in (0, 1):
            await beat(desk, rank, sign(4 - rank, pid=rank))
        await asyncio.sleep(0.05)
        await beat(desk, 1, sign(3))
        assert await desk.idle(0) > 0.04, "a beat that says nothing new is no progress"
        await beat(desk, 1, sign(4))
        assert await desk.idle(0) < 0.04
        await beat(desk, 1, sign(3))
        assert {one.pid for one in await desk.hangs(0)} == {0, 7}
        await desk.died(0, {0: DEAD, 1: DEAD})
        (event,) = await desk.said()
        assert (event["cause"], event["rank"]) == ("hang", 1), "the one that is behind"
        for rank in (0, 1):
            await end(desk, rank, OWN)
        assert await desk.idle(0) == 0

    run(test())


def test_beats_of_an_old_life_or_stage_are_not_heard():
    async def test():
        desk = Desk(1, 1)
        await opened(desk)
        await desk.next(0, "a", -1)
        await beat(desk, 0, sign(), ("x", 0))
        await beat(desk, 0, sign(), ("a", 1))
        assert await desk.hangs(0) == []

    run(test())
