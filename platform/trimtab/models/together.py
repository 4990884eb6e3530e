"""Answers made side by side, each asking decoders in an order of its own; a decoder runs all that is asked at once."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from trimtab.models.asked import Asked, Told
from trimtab.models.decode import Decoder

Order = tuple[Decoder, list[Asked], Future]
T = TypeVar("T")


class Together:
    """Decoders, and the answers that ask them."""

    def __init__(self, decoders: Sequence[Decoder]) -> None:
        self.decoders = decoders
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()

    def __call__(self, answers: Sequence[Callable[[], T]]) -> list[T]:
        """What each answer comes to; each runs in a thread, the decoders in this one."""
        with ThreadPoolExecutor(len(answers)) as pool:
            under_way = [pool.submit(answer) for answer in answers]
            for one in under_way:
                one.add_done_callback(lambda _: self._orders.put(None))
            self._work(len(under_way))
        return [one.result() for one in under_way]

    def ask(self, decoder: Decoder, asked: list[Asked]) -> list[list[Told]]:
        """What a decoder tells of requests; for an answer, which waits for it."""
        done: Future = Future()
        self._orders.put((decoder, asked, done))
        return done.result()

    def _work(self, answers: int) -> None:
        """Run the decoders until every answer is over; a mistake in what is asked is raised where it was asked."""
        desks = [Desk(decoder) for decoder in self.decoders]
        while answers:
            while not self._orders.empty() or not any(desk.decoder.busy for desk in desks):
                order = self._orders.get()
                answers -= order is None
                if not answers:
                    break
                if order:
                    next(desk for desk in desks if desk.decoder is order[0]).take(*order[1:])
            for desk in desks:
                desk.step()


class Desk:
    """What is asked of one decoder, until all of an order is told."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._told: dict[int, list[Told]] = {}
        self._open: list[tuple[list[int], Future]] = []

    def take(self, asked: list[Asked], done: Future) -> None:
        """An order; a mistake in it is given back at once."""
        tickets: list[int] = []
        try:
            for one in asked:
                tickets.append(self.decoder.add(one))
        except Exception as error:  # noqa: BLE001  whatever it is, who asked must hear of it
            for ticket in tickets:
                self.decoder.drop(ticket)
            done.set_exception(error)
            return
        self._told |= {ticket: [] for ticket in tickets}
        self._open.append((tickets, done))

    def step(self) -> None:
        """A step, if there is anything to do."""
        if not self.decoder.busy:
            return
        over = set()
        for told in self.decoder.step():
            self._told[told.ticket].append(told)
            if told.finish:
                over.add(told.ticket)
        for tickets, done in [one for one in self._open if over & set(one[0])]:
            if all(self._told[ticket] and self._told[ticket][-1].finish for ticket in tickets):
                self._open.remove((tickets, done))
                done.set_result([self._told.pop(ticket) for ticket in tickets])
