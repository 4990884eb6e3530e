"""An ensemble's decoder in a thread of its own, asked and listened to from an event loop."""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future

from trimtab.errors import TrimtabError
from trimtab.models.asked import Asked, Told
from trimtab.models.decode import Decoder


class EngineStopped(TrimtabError):
    """The decoder is no more: it was closed, or failed."""


class Engine:
    """Requests join the running batch at the next step; leaving a stream early frees its slot in every model."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._orders: queue.SimpleQueue = queue.SimpleQueue()
        self._listeners: dict[int, tuple[asyncio.AbstractEventLoop, asyncio.Queue]] = {}
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="trimtab-decoder", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    async def stream(self, asked: Asked) -> AsyncIterator[Told]:
        """Tokens as they are drawn. Raises ModelError or StageError for what cannot be asked, EngineStopped."""
        heard: asyncio.Queue = asyncio.Queue()
        added = self._order("add", asked, asyncio.get_running_loop(), heard)
        try:
            ticket = await asyncio.wrap_future(added)
        except asyncio.CancelledError:
            added.add_done_callback(self._unwanted)
            raise
        finished = False
        try:
            while not finished:
                told = await heard.get()
                if isinstance(told, BaseException):
                    raise EngineStopped(f"the decoder stopped: {told}") from told
                finished = told.finish is not None
                yield told
        finally:
            if not finished:
                self._orders.put(("drop", ticket))

    def close(self) -> None:
        """Stop after the step that runs; whoever still listens is told."""
        self._orders.put(("stop",))
        self._thread.join()

    def _unwanted(self, added: Future) -> None:
        """Who asked has left before the answer came."""
        if not added.cancelled() and added.exception() is None:
            self._orders.put(("drop", added.result()))

    def _order(self, *order: object) -> Future:
        done: Future = Future()
        if not self.alive:
            raise EngineStopped(f"the decoder stopped: {self._failure or 'it was closed'}")
        self._orders.put((*order, done))
        return done

    def _work(self) -> None:
        try:
            while self._obey():
                for told in self.decoder.step():
                    self._tell(told.ticket, told)
                    if told.finish:
                        self._listeners.pop(told.ticket, None)
        except BaseException as error:  # noqa: BLE001  whatever it is, those who wait must hear of it
            self._failure = error
        for ticket in list(self._listeners):
            self._tell(ticket, self._failure or EngineStopped("it was closed"))
        while not self._orders.empty():
            order = self._orders.get()
            if order[0] == "add" and order[-1].set_running_or_notify_cancel():
                order[-1].set_exception(EngineStopped("the decoder stopped"))

    def _obey(self) -> bool:
        """Take all orders that are there, waiting for one where there is nothing to do; False to stop."""
        while not self._orders.empty() or not self.decoder.busy:
            kind, *order = self._orders.get()
            if kind == "stop":
                return False
            if kind == "drop":
                self._listeners.pop(order[0], None)
                self.decoder.drop(order[0])
            if kind == "add":
                self._add(*order)
        return True

    def _add(self, asked: Asked, loop: asyncio.AbstractEventLoop, heard: asyncio.Queue, done: Future) -> None:
        if not done.set_running_or_notify_cancel():
            return
        try:
            ticket = self.decoder.add(asked)
        except TrimtabError as error:
            done.set_exception(error)
            return
        self._listeners[ticket] = (loop, heard)
        done.set_result(ticket)

    def _tell(self, ticket: int, told: object) -> None:
        listener = self._listeners.get(ticket)
        if listener:
            try:
                listener[0].call_soon_threadsafe(listener[1].put_nowait, told)
            except RuntimeError:  # its loop is closed: nobody listens any more
                self._orders.put(("drop", ticket))
