"""Stages at work: the queue decides, one thread for each lane does a step at a time and tells who waits.

What is cancelled, or late, stops before its batch's next step, since a stage is a generator that is no longer pulled. A
step that never ends is given up by a thread that watches: its jobs end with an error, and a new thread takes the lane.
"""

import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable
from uuid import uuid4

import torch

from pixelcascade.cascade import Loads
from pixelcascade.noise import Image
from pixelcascade.serve.queue import Batch, FullError, Job, Queue, StageRule
from pixelcascade.serve.rows import Row, Words, finer, fit, together
from pixelcascade.stage import Draft, Progress, Stage, StageStep

log = logging.getLogger("pixelcascade.serve")


class CancelledError(Exception):
    """Who asked does not want it any more."""


class LateError(Exception):
    """It was not done in the time it had, or a step never ended."""


class MemoryShortError(Exception):
    """Not even one image fits into memory."""


class Stepped(NamedTuple):
    """Some images of a job are a step further. previews: of these rows, where they were asked for."""

    stage: str
    index: int
    of: int
    rows: tuple[int, ...]
    previews: Image | None


class Painted(NamedTuple):
    """A stage is done with an image of a job. last: it is finished."""

    stage: str
    row: int
    draft: Draft
    last: bool


class Ended(NamedTuple):
    """Nothing comes any more. error: None when all is done."""

    error: BaseException | None


Event = Stepped | Painted | Ended


@runtime_checkable
class Watcher(Protocol):
    """Who counts and measures."""

    def batch(self, stage: str, images: int) -> None: ...
    def step(self, stage: str, seconds: float) -> None: ...
    def stage_done(self, stage: str, seconds: float) -> None: ...
    def waited(self, seconds: float) -> None: ...
    def ended(self, outcome: str) -> None: ...


class Blind:
    """Counts nothing."""

    def batch(self, stage: str, images: int) -> None: ...
    def step(self, stage: str, seconds: float) -> None: ...
    def stage_done(self, stage: str, seconds: float) -> None: ...
    def waited(self, seconds: float) -> None: ...
    def ended(self, outcome: str) -> None: ...


def never(stage: str, index: int, of: int) -> bool:
    """Looks at no preview."""
    return False


@dataclass(eq=False)
class Ask:
    """What is to be painted: rows, one an image, through the stages of these names, in order.

    key: who asks, for fairness. tell: told of all that happens, from other threads, one event at a time. look: whether
    the preview after such a step is wanted. limit_s: when it is given up.
    """

    rows: Sequence[Row]
    stages: tuple[str, ...]
    tell: Callable[[Event], object]
    key: str = ""
    look: Callable[[str, int, int], bool] = never
    limit_s: float | None = None
    id: str = field(default_factory=lambda: uuid4().hex)


@dataclass(eq=False)
class _Work:
    """A batch in a generator's hands."""

    progress: Progress
    rows: list[Draft]


@dataclass(eq=False)
class _Lane:
    """A thread, and since when it has been in a step, of what."""

    name: str
    thread: threading.Thread | None = None
    since: float | None = None
    batch: Batch | None = None
    given_up: bool = False


class Engine:
    """Paints what it is asked for, in batches, until it is closed.

    stages: those of a cascade, or one. rules: by stage name; those that are left out have the usual ones. encoder: what
    turns words into contexts, called when a batch of words begins. most: see `Queue`. hang_s: the longest step.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        rules: Mapping[str, StageRule] | None = None,
        *,
        encoder: Callable[[], Callable] | None = None,
        most: int = 256,
        hang_s: float = 300.0,
        watcher: Watcher | None = None,
    ):
        self.stages = {stage.name: stage for stage in stages}
        self.queue = Queue({name: (rules or {}).get(name, StageRule()) for name in self.stages}, most)
        self.watcher: Watcher = watcher or Blind()
        self.ready: dict[str, bool] = dict.fromkeys(self.stages, False)
        self._encoder, self._hang_s = encoder, hang_s
        self._asks: dict[str, Ask] = {}
        self._rows: dict[tuple[str, int], Row] = {}
        self._work: dict[Batch, _Work] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._lanes: list[_Lane] = []

    # -- who asks --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to load the stages, and then to work."""
        for name in {rule.lane: rule for rule in self.queue.rules.values()}:
            for _ in range(max(rule.replicas for rule in self.queue.rules.values() if rule.lane == name)):
                self._begin(_Lane(name))
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def submit(self, ask: Ask) -> None:
        """FullError when there is no room, ValueError when there never is. From now on `ask.tell` is called."""
        now = time.monotonic()
        fits = tuple(self._fit(ask, stage) for stage in ask.stages)
        until = None if ask.limit_s is None else now + ask.limit_s
        job = Job(ask.id, ask.key, len(ask.rows), ask.stages, fits, now, until)
        with self._changed:
            if self._closed:
                raise FullError(10)
            self.queue.add(job)
            self._asks[ask.id] = ask
            for index, row in enumerate(ask.rows):
                self._rows[ask.id, index] = row
            self._changed.notify_all()

    def cancel(self, id: str) -> bool:
        """Whether there was something left to cancel; it stops before its next step."""
        with self._changed:
            job = self.queue.jobs.get(id)
            if job is None:
                return False
            self._end(job, CancelledError("it was cancelled"))
            self._changed.notify_all()
            return True

    @property
    def load(self) -> int:
        """Images times stages that are waiting or being painted."""
        with self._changed:
            return self.queue.load

    def state(self, id: str) -> str:
        """Of a job that has not ended: queued or running."""
        with self._changed:
            job = self.queue.jobs.get(id)
            return "queued" if job is None or job.began is None else "running"

    def waiting(self) -> dict[str, int]:
        with self._changed:
            return self.queue.waiting()

    def close(self) -> None:
        """Ends what is left with an error, and the threads after their step."""
        with self._changed:
            self._closed = True
            for job in list(self.queue.jobs.values()):
                self._end(job, CancelledError("the server is stopping"))
            self._changed.notify_all()
        for lane in self._lanes:
            if lane.thread is not None and not lane.given_up:
                lane.thread.join(timeout=10)

    # -- lanes -----------------------------------------------------------------------------------------------------

    def _begin(self, lane: _Lane) -> None:
        lane.thread = threading.Thread(target=self._labour, args=(lane,), name=f"lane {lane.name}", daemon=True)
        self._lanes.append(lane)
        lane.thread.start()

    def _labour(self, lane: _Lane) -> None:
        self._load(lane.name)
        while (batch := self._pick(lane)) is not None:
            began = time.monotonic()
            step, ended, error = self._advance(batch)
            seconds = time.monotonic() - began
            with self._changed:
                if lane.given_up:
                    return
                lane.since = lane.batch = None
                if error is not None:
                    self._failed(batch, error)
                elif step is not None:
                    self._stepped(batch, step, seconds)
                else:
                    self._finished(batch, ended, seconds)
                self._changed.notify_all()

    def _load(self, lane: str) -> None:
        for name, rule in self.queue.rules.items():
            stage = self.stages[name]
            if rule.lane != lane or self.ready[name]:
                continue
            try:
                if isinstance(stage, Loads):
                    stage.load()
                if self._encoder is not None and stage.takes is None:
                    self._encoder()
                self.ready[name] = True
            except Exception as error:
                log.exception("a stage cannot be loaded", extra={"stage": name, "error": str(error)})

    def _pick(self, lane: _Lane) -> Batch | None:
        """The batch to advance; None when the engine is closed. What nobody waits for is closed on the way."""
        while True:
            with self._changed:
                if self._closed:
                    return None
                now = time.monotonic()
                batch = self.queue.next(lane.name, now)
                if batch is None:
                    gathering = any(self.queue.waiting().values())
                    self._changed.wait(0.005 if gathering else 1.0)
                    continue
                if batch.wanted:
                    lane.since, lane.batch = now, batch
                    if batch.steps == 0 and batch not in self._work:
                        self.watcher.batch(batch.stage, len(batch.places))
                        for job in {place.job for place in batch.places if place.job.began == now}:
                            self.watcher.waited(now - job.came)
                    return batch
                self.queue.dropped(batch)
                work = self._work.pop(batch, None)
            if work is not None:
                work.progress.close()

    def _advance(self, batch: Batch) -> tuple[StageStep | None, Draft | None, BaseException | None]:
        """One step of it: the step, or the finished draft, or what went wrong."""
        try:
            if batch not in self._work:
                self._work[batch] = self._opened(batch)
            return next(self._work[batch].progress), None, None
        except StopIteration as done:
            return None, done.value, None
        except Exception as error:
            return None, None, error
        except BaseException as error:  # a stage that calls exit: it is not this server's end
            return None, None, RuntimeError(f"stage {batch.stage!r} ended with {error!r}")

    def _opened(self, batch: Batch) -> _Work:
        with self._changed:
            rows = [self._rows.get((place.job.id, place.row)) for place in batch.places]
        words = [row for row in rows if isinstance(row, Words)]
        if words:
            assert self._encoder is not None
            drafts = iter(self._encoder()(words))
            rows = [next(drafts) if isinstance(row, Words) else row for row in rows]
        # a row that was cancelled a moment ago is gone: its neighbour stands in for it, and nobody looks at it
        present = next((row for row in rows if row is not None), None)
        if present is None:
            raise CancelledError("it was cancelled")
        whole = [row if isinstance(row, Draft) else present for row in rows]
        stage = self.stages[batch.stage]
        assert all(isinstance(row, Draft) for row in whole)
        drafts = [row for row in whole if isinstance(row, Draft)]
        return _Work(stage.refine(together(stage, drafts)), drafts)

    # -- what became of a step; all with the lock held -------------------------------------------------------------

    def _stepped(self, batch: Batch, step: StageStep, seconds: float) -> None:
        self.queue.stepped(batch, seconds)
        self.watcher.step(batch.stage, seconds)
        for job, places in self._by_job(batch).items():
            ask = self._asks[job.id]
            previews = None
            if ask.look(step.stage, step.index, step.of):
                previews = step.preview[[index for index, _ in places]]
            self._tell(ask, Stepped(step.stage, step.index, step.of, tuple(row for _, row in places), previews))

    def _finished(self, batch: Batch, draft: Draft | None, seconds: float) -> None:
        assert draft is not None
        by_job = self._by_job(batch)
        drafts = finer(self._work.pop(batch).rows, draft.painted)
        done = self.queue.finished(batch, seconds)
        self.watcher.stage_done(batch.stage, batch.seconds)
        for job, places in by_job.items():
            ask, last = self._asks[job.id], batch.stage == job.stages[-1]
            for index, row in places:
                self._rows[job.id, row] = drafts[index]
                self._tell(ask, Painted(batch.stage, row, drafts[index], last))
        for job in done:
            self._leave(job, None)

    def _failed(self, batch: Batch, error: BaseException) -> None:
        self._work.pop(batch, None)
        if _is_short_of_memory(error):
            if self.queue.halved(batch):
                log.warning("out of memory: batches are halved", extra={"stage": batch.stage})
                return
            error = MemoryShortError(f"stage {batch.stage!r} has too little memory for one image")
        if batch.wanted and not isinstance(error, ValueError):
            log.error("a stage has failed", exc_info=error, extra={"stage": batch.stage})
        for job in self.queue.failed(batch):
            self._leave(job, error)

    def _by_job(self, batch: Batch) -> dict[Job, list[tuple[int, int]]]:
        """(place in the batch, row of the job) of those that are still waited for."""
        found: dict[Job, list[tuple[int, int]]] = {}
        for index, place in enumerate(batch.places):
            if not place.job.ended:
                found.setdefault(place.job, []).append((index, place.row))
        return found

    def _end(self, job: Job, error: BaseException) -> None:
        self.queue.end(job)
        self._leave(job, error)

    def _leave(self, job: Job, error: BaseException | None) -> None:
        ask = self._asks.pop(job.id)
        for row in range(job.count):
            self._rows.pop((job.id, row), None)
        self.watcher.ended(outcome_of(error))
        self._tell(ask, Ended(error))

    def _tell(self, ask: Ask, event: Event) -> None:
        try:
            ask.tell(event)
        except Exception:  # whoever asked is gone; others wait
            log.exception("an event could not be told")

    def _fit(self, ask: Ask, stage: str) -> Hashable:
        return fit(self.stages[stage], ask.rows[0])

    # -- the watch -------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Ends what is late, and gives up lanes whose step does not end."""
        while True:
            time.sleep(min(0.1, self._hang_s / 4))
            with self._changed:
                if self._closed:
                    return
                now = time.monotonic()
                for job in self.queue.late(now):
                    self._end(job, LateError("it was not done in the time it had"))
                for lane in [lane for lane in self._lanes if lane.since is not None]:
                    if not lane.given_up and lane.batch is not None and now - (lane.since or now) > self._hang_s:
                        self._give_up(lane, lane.batch)
                self._changed.notify_all()

    def _give_up(self, lane: _Lane, batch: Batch) -> None:
        lane.given_up = True
        self._failed(batch, LateError(f"a step of stage {batch.stage!r} did not end within {self._hang_s:g} s"))
        self._lanes.remove(lane)
        self._begin(_Lane(lane.name))


def outcome_of(error: BaseException | None) -> str:
    if error is None:
        return "done"
    kinds = {CancelledError: "cancelled", LateError: "late", MemoryShortError: "memory", ValueError: "refused"}
    return next((name for kind, name in kinds.items() if isinstance(error, kind)), "failed")


def _is_short_of_memory(error: BaseException) -> bool:
    """CUDA says so by its own error, the CPU's allocator by a sentence."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
