"""A base whose completions a search chooses, as a language model draws them: many searches side by side."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from trimtab.alignment import Sampling
from trimtab.lm import Generated
from trimtab.methods.searches._base import Ratio, Search
from trimtab.models.asked import Asked, Told
from trimtab.models.decode import Decoder
from trimtab.models.sampler import LocalSampler, LocalScorer, Remembered

Order = tuple[Decoder, list[Asked], Future]


class SearchedLM:
    """Draws by a search; base and helpers, each in a decoder of its own, share one vocabulary."""

    def __init__(self, search: Search, base: Decoder, helpers: Sequence[Decoder]) -> None:
        self.search, self.base, self.helpers = search, base, helpers
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()

    def generate(self, prompts: list[list[int]], sampling: Sampling, seeds: list[int]) -> list[Generated]:
        """One completion a prompt, by a search with random numbers of its seed; log-probs are the base's."""
        with ThreadPoolExecutor(len(prompts)) as pool:
            searches = [pool.submit(self._search, *one, sampling) for one in zip(prompts, seeds, strict=True)]
            for one in searches:
                one.add_done_callback(lambda _: self._orders.put(None))
            self._work(len(searches))
        return [one.result() for one in searches]

    def _search(self, prompt: list[int], seed: int, sampling: Sampling) -> Generated:
        sampler = Remembered(LocalSampler(partial(self._ask, self.base), prompt, sampling))
        scorers = [
            LocalScorer(partial(self._ask, one), prompt, lambda response: list(response.ids)) for one in self.helpers
        ]
        *_, last = self.search(sampler, Ratio(tuple(scorers)), most=sampling.max_new_tokens, seed=seed)
        best = last.kept[0].response
        return Generated(list(best.ids), sampler.logprobs[best.ids], ended=best.ended)

    def _ask(self, decoder: Decoder, asked: list[Asked]) -> list[list[Told]]:
        done: Future = Future()
        self._orders.put((decoder, asked, done))
        return done.result()

    def _work(self, searches: int) -> None:
        """Run the decoders until every search is over; a mistake in what is asked is raised where it was asked."""
        desks = [Desk(decoder) for decoder in (self.base, *self.helpers)]
        while searches:
            while not self._orders.empty() or not any(desk.decoder.busy for desk in desks):
                order = self._orders.get()
                searches -= order is None
                if not searches:
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
