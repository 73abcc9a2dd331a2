"""A job as the event loop sees it: its events one after the other, cancelled when nobody listens any more."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from starlette.requests import Request

from pixelcascade.serve.engine import Ask, Ended, Engine, Event

_Value = TypeVar("_Value")


class GoneError(Exception):
    """The client has closed its connection."""


class Ticket:
    """Events of an ask. It is an error to look into them twice."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.ask: Ask | None = None
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()  # bounded by the job's steps

    def tell(self, event: Event) -> None:
        """From whichever thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def submit(self, ask: Ask) -> None:
        self.engine.submit(ask)
        self.ask = ask

    async def events(self) -> AsyncIterator[Event]:
        """All but the last, which is raised if it is an error. Leaving early cancels the job."""
        async for event in self.beats(None):
            if event is not None:
                yield event

    async def beats(self, beat_s: float | None) -> AsyncIterator[Event | None]:
        """As `events`, with None after each so many seconds in which nothing happened."""
        try:
            while True:
                try:
                    event = await asyncio.wait_for(self._events.get(), beat_s)
                except TimeoutError:
                    yield None
                    continue
                if isinstance(event, Ended):
                    self.ask = None
                    if event.error is not None:
                        raise event.error
                    return
                yield event
        finally:
            self.cancel()

    def cancel(self) -> None:
        if self.ask is not None:
            self.engine.cancel(self.ask.id)
            self.ask = None


async def while_there(request: Request, work: Awaitable[_Value]) -> _Value:
    """The result of `work`, which is cancelled when the client goes; then GoneError."""
    job, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({job, gone}, return_when=asyncio.FIRST_COMPLETED)
        if job.done():
            return job.result()
        raise GoneError
    finally:
        for task in (job, gone):
            task.cancel()
        await asyncio.gather(job, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
