"""Keys, and who is let in when."""

from __future__ import annotations

import asyncio

import pytest

from trimtab.errors import JobError
from trimtab.serving.answer import Refused
from trimtab.serving.gate import Admission, Keys

NAME = "SOME_KEYS"


def test_one_of_the_keys_is_needed() -> None:
    keys = Keys(NAME, {NAME: "first, second,"})
    for good in ("Bearer first", "bearer second"):
        keys.check(good, "10.0.0.1")
    for bad in (None, "", "Bearer", "Bearer ", "Bearer firs", "Bearer first,", "Basic first", "first", "Bearer 日"):
        with pytest.raises(Refused) as caught:
            keys.check(bad, "127.0.0.1")
        assert (caught.value.refusal.status, caught.value.refusal.code) == (401, "invalid_api_key")
        assert "first" not in str(caught.value)


def test_without_keys_only_this_machine_is_answered() -> None:
    keys = Keys(NAME, {NAME: " , "})
    for peer in (None, "127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"):
        keys.check(None, peer)
    for peer in ("10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1", "somewhere"):
        with pytest.raises(Refused, match=f"set {NAME}"):
            keys.check("Bearer x", peer)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_other_machines_are_not_served_without_a_key(host: str) -> None:
    with pytest.raises(JobError, match=f"{NAME} holds no key"):
        Keys(NAME, {}).open_to(host)
    Keys(NAME, {NAME: "x"}).open_to(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_needs_no_key(host: str) -> None:
    Keys(NAME, {}).open_to(host)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_those_who_wait_are_let_in_in_their_order_and_too_many_are_sent_away() -> None:
    async def main() -> None:
        gate = Admission(in_flight=4, queue=5)
        assert await gate.enter(3) == 3
        waiting = [asyncio.create_task(gate.enter(rows)) for rows in (2, 1, 2)]
        await settled()
        assert (gate.used, gate.queued, [task.done() for task in waiting]) == (3, 5, [False] * 3)
        with pytest.raises(Refused) as caught:
            await gate.enter(1)
        assert (caught.value.refusal.status, caught.value.refusal.code) == (429, "rate_limit_exceeded")
        gate.leave(3)
        await settled()
        assert (gate.used, gate.queued, [task.done() for task in waiting]) == (3, 2, [True, True, False])
        gate.leave(2)
        await settled()
        assert waiting[2].done()
        gate.leave(1)
        gate.leave(2)
        assert (gate.used, gate.queued) == (0, 0)

    asyncio.run(main())


def test_a_request_larger_than_all_room_takes_all_of_it() -> None:
    async def main() -> None:
        gate = Admission(in_flight=2, queue=0)
        assert await gate.enter(9) == 2
        with pytest.raises(Refused):
            await gate.enter(1)
        gate.leave(2)
        assert await gate.enter(1) == 1

    asyncio.run(main())


def test_who_stops_waiting_leaves_no_trace() -> None:
    async def main() -> None:
        gate = Admission(in_flight=2, queue=9)
        await gate.enter(1)
        big = asyncio.create_task(gate.enter(2))
        small = asyncio.create_task(gate.enter(1))
        await settled()
        big.cancel()
        await settled()
        assert (gate.used, gate.queued, small.result()) == (2, 0, 1)
        late = asyncio.create_task(gate.enter(1))
        await settled()
        gate.leave(1)
        late.cancel()
        await settled()
        assert late.cancelled()
        gate.leave(1)
        assert (gate.used, gate.queued) == (0, 0)

    asyncio.run(main())
