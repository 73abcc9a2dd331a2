"""Which images are painted together, and whose step is next: a pure function of what was asked and of the time told.

The unit is one image of a job at one stage of it, a *place*. Places that fit (same stage, same fit) form a batch, one
at a time for each stage (of a stage with several replicas, one for each), and a batch is not changed until its stage
is done: images join and leave between stages. Steps of different stages' batches take turns, so that a slow stage does
not hold up a quick one: the next step is of the stage that has had the least time. A lane is a device: the stages of
one lane take turns, lanes work side by side.

Between keys it is fair: the next image is of the key that has been served least, and within a key the first come. There
are no threads and no clocks here; times are in seconds and are passed in.
"""

from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

RETRY_MOST_S = 120
_FIRST_GUESS_S = 0.5  # of an image at a stage, until some were painted


class FullError(Exception):
    """There is no room. retry_after_s: when there may be some."""

    def __init__(self, retry_after_s: int):
        super().__init__(f"the queue is full; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class StageRule:
    """What the queue knows of a stage. most: images in a batch, as memory allows. lane: the device it runs on.

    replicas: batches that it works on at one time.
    """

    most: int = 8
    lane: str = "here"
    replicas: int = 1


@dataclass(eq=False)
class Job:
    """Images of one request. stages: those that it needs, in order. fits: what must be equal to share a batch with it,
    for each of them. until: when it is given up, None: never."""

    id: str
    key: str
    count: int
    stages: tuple[str, ...]
    fits: tuple[Hashable, ...]
    came: float
    until: float | None = None
    began: float | None = None
    ended: bool = False
    left: int = field(init=False)  # places that are not done

    def __post_init__(self):
        self.left = self.count * len(self.stages)


class Place(NamedTuple):
    """One image of a job."""

    job: Job
    row: int


@dataclass(eq=False)
class Batch:
    """Images that are painted together at one stage. busy: a step of it is being done."""

    stage: str
    places: tuple[Place, ...]
    steps: int = 0
    seconds: float = 0.0
    busy: bool = False

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits for one of its images."""
        return any(not place.job.ended for place in self.places)


class Queue:
    """Jobs that wait and batches that are being painted.

    rules: by stage name. most: places that are accepted at one time, images times stages. gather_s: after a batch of
    several images, so long the next one waits for as many; a client that is alone never waits.
    """

    def __init__(self, rules: Mapping[str, StageRule], most: int = 256, gather_s: float = 0.04):
        self.rules, self.most, self.gather_s = dict(rules), most, gather_s
        self._before = dict.fromkeys(rules, 1)  # images of each stage's batch before
        self.jobs: dict[str, Job] = {}
        self.running: dict[str, list[Batch]] = {stage: [] for stage in rules}
        self._waiting: dict[str, dict[str, deque[Place]]] = {stage: {} for stage in rules}
        self._caps = {stage: rule.most for stage, rule in rules.items()}
        self._time = dict.fromkeys(rules, 0.0)  # seconds of each stage's steps; its share of the lane
        self._served: dict[str, float] = {}  # places of each key that still has jobs
        self._place_s = _FIRST_GUESS_S

    # -- what comes and goes ---------------------------------------------------------------------------------------

    @property
    def load(self) -> int:
        """Places that are not done: images times the stages that they still need."""
        return sum(job.left for job in self.jobs.values())

    def add(self, job: Job) -> None:
        """FullError when there is no room for all its images, ValueError when there never will be."""
        if job.left > self.most:
            raise ValueError(
                f"{job.count} images of {len(job.stages)} stages are more than the queue holds, {self.most}"
            )
        if self.load + job.left > self.most:
            raise FullError(self.retry_after_s())
        # A key that comes, or comes back, has had as much as the least served one: it cannot save up turns.
        self._served.setdefault(job.key, min(self._served.values(), default=0.0))
        self.jobs[job.id] = job
        for row in range(job.count):
            self._wait(Place(job, row), job.stages[0])

    def end(self, job: Job) -> None:
        """The job is done, cancelled or has failed: what is left of it goes."""
        if job.ended:
            return
        job.ended = True
        job.left = 0
        del self.jobs[job.id]
        for lines in self._waiting.values():
            if job.key in lines:
                lines[job.key] = deque(place for place in lines[job.key] if place.job is not job)
                if not lines[job.key]:
                    del lines[job.key]
        if all(other.key != job.key for other in self.jobs.values()):
            self._served.pop(job.key, None)

    def late(self, now: float) -> list[Job]:
        """The jobs whose time is over."""
        return [job for job in self.jobs.values() if job.until is not None and now >= job.until]

    def retry_after_s(self) -> int:
        """When half of what is accepted will be done, as far as one can tell."""
        return max(1, min(RETRY_MOST_S, round(self.load / 2 * self._place_s)))

    # -- what is done next -----------------------------------------------------------------------------------------

    def next(self, lane: str, now: float) -> Batch | None:
        """The batch whose step is next on this lane, busy from now on; its `steps` are 0 when it is a new one."""
        able = [stage for stage in self._of(lane) if self._may_form(stage, now) or self._idle(stage)]
        if not able:
            return None
        stage = min(able, key=lambda stage: self._time[stage])
        batch = self._idle(stage)
        if self._may_form(stage, now):
            batch = self._form(stage, now)
            self.running[stage].append(batch)
        assert batch is not None
        batch.busy = True
        return batch

    def stepped(self, batch: Batch, seconds: float) -> None:
        """A step of it was done, which took so long."""
        batch.steps, batch.busy = batch.steps + 1, False
        self._spend(batch, seconds)

    def finished(self, batch: Batch, seconds: float) -> list[Job]:
        """Its stage is done, after a last piece of work of so long. Its images wait for their next stage, or are done;
        the jobs that have all their images."""
        self._spend(batch, seconds)
        self._place_s += 0.2 * (batch.seconds / len(batch.places) - self._place_s)
        self.running[batch.stage].remove(batch)
        done = []
        for place in batch.places:
            job = place.job
            if job.ended:
                continue
            job.left -= 1
            after = job.stages.index(batch.stage) + 1
            if after < len(job.stages):
                self._wait(place, job.stages[after])
            elif job.left == 0:
                done.append(job)
        for job in done:
            self.end(job)
        return done

    def failed(self, batch: Batch) -> list[Job]:
        """Its stage cannot be done: the jobs that end by it."""
        self.running[batch.stage].remove(batch)
        jobs = list(dict.fromkeys(place.job for place in batch.places if not place.job.ended))
        for job in jobs:
            self.end(job)
        return jobs

    def halved(self, batch: Batch) -> bool:
        """Memory did not suffice: its images wait again, and the stage's batches become half as large. False when it
        was one image already; then nothing is changed."""
        if len(batch.places) == 1:
            return False
        self._caps[batch.stage] = len(batch.places) // 2
        self.running[batch.stage].remove(batch)
        for place in reversed(batch.places):
            if not place.job.ended:
                self._line(batch.stage, place.job.key).appendleft(place)
        return True

    def dropped(self, batch: Batch) -> None:
        """Nobody waits for it any more."""
        assert not batch.wanted
        self.running[batch.stage].remove(batch)

    def waiting(self) -> dict[str, int]:
        """Images that wait, by stage."""
        return {stage: sum(map(len, lines.values())) for stage, lines in self._waiting.items()}

    # -- batches ---------------------------------------------------------------------------------------------------

    def _form(self, stage: str, now: float) -> Batch:
        """The image of the key that was served least, and others that fit it, in turns of the keys."""
        lines, places = self._waiting[stage], []
        fit = None
        while len(places) < self._caps[stage]:
            choices = {key: place for key, line in lines.items() if (place := _first(line, stage, fit)) is not None}
            if not choices:
                break
            key = min(choices, key=lambda key: (self._served[key], choices[key].job.came))
            place = choices[key]
            lines[key].remove(place)
            if not lines[key]:
                del lines[key]
            self._served[key] += 1
            fit = _fit_of(place.job, stage)
            places.append(place)
            if place.job.began is None:
                place.job.began = now
        self._before[stage] = len(places)
        return Batch(stage, tuple(places))

    def _wait(self, place: Place, stage: str) -> None:
        if not self._works(stage):
            lane = self._of(self.rules[stage].lane)
            busy = [self._time[other] for other in lane if self._works(other)]
            if busy:  # a stage that had nothing to do has not saved up time
                self._time[stage] = max(self._time[stage], min(busy))
            else:
                self._time |= dict.fromkeys(lane, 0.0)
        self._line(stage, place.job.key).append(place)

    def _line(self, stage: str, key: str) -> deque[Place]:
        return self._waiting[stage].setdefault(key, deque())

    def _spend(self, batch: Batch, seconds: float) -> None:
        batch.seconds += seconds
        self._time[batch.stage] += seconds

    def _of(self, lane: str) -> list[str]:
        return [stage for stage, rule in self.rules.items() if rule.lane == lane]

    def _works(self, stage: str) -> bool:
        return bool(self.running[stage] or self._waiting[stage])

    def _may_form(self, stage: str, now: float) -> bool:
        lines = self._waiting[stage].values()
        if not lines or len(self.running[stage]) >= self.rules[stage].replicas:
            return False
        enough = sum(map(len, lines)) >= min(self._before[stage], self._caps[stage])
        return enough or now - min(line[0].job.came for line in lines) >= self.gather_s

    def _idle(self, stage: str) -> Batch | None:
        return next((batch for batch in self.running[stage] if not batch.busy), None)


def _fit_of(job: Job, stage: str) -> Hashable:
    return job.fits[job.stages.index(stage)]


def _first(line: Iterable[Place], stage: str, fit: Hashable | None) -> Place | None:
    """The first that fits; None fits all."""
    return next((place for place in line if fit is None or _fit_of(place.job, stage) == fit), None)
