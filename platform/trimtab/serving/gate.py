"""What stands before the ensembles: keys, the size of bodies, how many are let in, how long they may take."""

import asyncio
import hashlib
import hmac
import ipaddress
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import aclosing
from typing import TypeVar

from trimtab.errors import JobError
from trimtab.serving.answer import Backend, Event, Piece, Refusal, Refused, Request, State
from trimtab.serving.config import GuidedArgs
from trimtab.serving.meters import Meters

T = TypeVar("T")


class Keys:
    """The API keys of an environment, of which only hashes are kept."""

    def __init__(self, variable: str, environment: Mapping[str, str]) -> None:
        keys = [key.strip() for key in environment.get(variable, "").split(",")]
        self.variable, self._digests = variable, [_digest(key) for key in keys if key]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, authorization: str | None, peer: str | None) -> None:
        """Raises Refused for a header without one of the keys; where there is none, for peers beyond this machine."""
        if not self._digests:
            if peer is not None and not here(peer):
                said = f"without keys only this machine is answered; set {self.variable} where the server runs"
                raise Refused(401, said, code="invalid_api_key")
            return
        scheme, _, given = (authorization or "").partition(" ")
        own = _digest(given.strip())
        known = sum(hmac.compare_digest(own, digest) for digest in self._digests)
        if not known or scheme.lower() != "bearer":
            said = "this API key is not known" if authorization else "give an API key: Authorization: Bearer KEY"
            raise Refused(401, said, code="invalid_api_key")

    def open_to(self, host: str) -> None:
        """Raises JobError where a host beyond this machine would be served without a key."""
        if not self and not here(host):
            said = f"{host} is reached from other machines, and {self.variable} holds no key; set it, or take 127.0.0.1"
            raise JobError([f"http_options.host: {said}"])


def here(host: str) -> bool:
    """Whether a name or address is this machine's own."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()


class Admission:
    """Completions of one ensemble: so many under way, so many that wait, in the order in which they came."""

    def __init__(self, in_flight: int, queue: int) -> None:
        self.most, self.room = in_flight, queue
        self.used = self.queued = 0
        self._waiting: deque[tuple[int, asyncio.Future]] = deque()

    async def enter(self, rows: int) -> int:
        """Wait for room; how much was taken, to be given back. Raises Refused where too many wait already."""
        rows = min(rows, self.most)
        if not self._waiting and self.used + rows <= self.most:
            self.used += rows
            return rows
        if self.queued + rows > self.room:
            said = f"too many requests: {self.used} completions are under way, {self.queued} wait; try again"
            raise Refused(429, said, code="rate_limit_exceeded")
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((rows, turn))
        self.queued += rows
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(rows)
            else:
                self._waiting.remove((rows, turn))
                self.queued -= rows
                self._let_in()
            raise
        return rows

    def leave(self, rows: int) -> None:
        """Give room back."""
        self.used -= rows
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self.used + self._waiting[0][0] <= self.most:
            rows, turn = self._waiting.popleft()
            self.queued -= rows
            self.used += rows
            turn.set_result(None)


class Clock:
    """When the text of a request's answers came."""

    def __init__(self, meters: Meters, model: str) -> None:
        self.meters, self.model, self._began = meters, model, time.monotonic()
        self._first: dict[int, float] = {}

    def piece(self, piece: Piece) -> None:
        now = time.monotonic()
        if not self._first:
            self.meters.first.labels(self.model).observe(now - self._began)
        first = self._first.setdefault(piece.index, now)
        if piece.spent and piece.spent.completion > 1:
            self.meters.each.labels(self.model).observe((now - first) / (piece.spent.completion - 1))


class Gate:
    """The way to the ensembles."""

    def __init__(self, args: GuidedArgs, backends: Mapping[str, Backend]) -> None:
        self.args, self.backends, self.meters = args, backends, Meters()
        self.admissions = {name: Admission(args.limits.in_flight, args.limits.queue) for name in backends}

    async def events(self, request: Request, ensemble: str, model: str) -> AsyncIterator[tuple[Event, ...]]:
        """`Opened`, then pieces. Raises Refused: too many, too late, or what the ensemble says."""
        until, clock = asyncio.get_running_loop().time() + self.args.deadline_s, Clock(self.meters, model)
        admission = self.admissions[ensemble]
        rows = await self._in_time(admission.enter(request.rows), until)
        try:
            async with aclosing(self.backends[ensemble].answer(request)) as answers:
                while batch := await self._in_time(anext(answers, None), until):
                    for event in batch:
                        if isinstance(event, Refusal):
                            raise Refused.by(event)
                        if isinstance(event, Piece):
                            clock.piece(event)
                            if event.spent:
                                self.meters.spent(ensemble, event.spent)
                    yield batch
        finally:
            admission.leave(rows)

    async def _in_time(self, work: Awaitable[T], until: float) -> T:
        try:
            async with asyncio.timeout_at(until):
                return await work
        except TimeoutError:
            said = f"the answer took longer than {self.args.deadline_s:g} s; ask for fewer tokens"
            raise Refused(504, said, code="deadline_exceeded") from None

    async def states(self) -> dict[str, State | Refusal]:
        """How every ensemble stands."""
        found = await asyncio.gather(*(one.state() for one in self.backends.values()))
        states = dict(zip(self.backends, found, strict=True))
        for name, state in states.items():
            if isinstance(state, State):
                self.meters.state(name, state)
        for name, admission in self.admissions.items():
            self.meters.in_flight.labels(name).set(admission.used)
            self.meters.queued.labels(name).set(admission.queued)
        return states
