"""What a server counts and measures, in Prometheus' text format."""

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SHORT = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class Metrics:
    """The engine's watcher, and the counters of the HTTP side."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self):
        self.registry = registry = CollectorRegistry()
        name = "pixelcascade_"
        self._batch = Histogram(
            name + "batch_images", "Images of a batch", ["stage"], buckets=_SIZES, registry=registry
        )
        self._step = Histogram(name + "step_seconds", "A denoising step", ["stage"], buckets=_SHORT, registry=registry)
        self._stage = Histogram(
            name + "stage_seconds", "All steps of a batch at a stage", ["stage"], buckets=_SHORT, registry=registry
        )
        self._wait = Histogram(
            name + "wait_seconds", "From a job's arrival to its first step", buckets=_SHORT, registry=registry
        )
        self._jobs = Counter(name + "jobs", "Jobs that ended", ["outcome"], registry=registry)
        self._rejects = Counter(name + "rejects", "Requests that were not accepted", ["status"], registry=registry)
        self._http = Histogram(
            name + "http_seconds", "Requests", ["method", "route", "status"], buckets=_SHORT, registry=registry
        )

    def watch_load(self, load: Callable[[], int], waiting: Callable[[], dict[str, int]]) -> None:
        """Gauges that ask when they are read."""
        places = Gauge("pixelcascade_queue_places", "Images times stages accepted and not done", registry=self.registry)
        places.set_function(load)
        queued = Gauge("pixelcascade_waiting_images", "Images that wait", ["stage"], registry=self.registry)
        for stage in waiting():
            queued.labels(stage).set_function(lambda stage=stage: waiting()[stage])

    def batch(self, stage: str, images: int) -> None:
        self._batch.labels(stage).observe(images)

    def step(self, stage: str, seconds: float) -> None:
        self._step.labels(stage).observe(seconds)

    def stage_done(self, stage: str, seconds: float) -> None:
        self._stage.labels(stage).observe(seconds)

    def waited(self, seconds: float) -> None:
        self._wait.observe(seconds)

    def ended(self, outcome: str) -> None:
        self._jobs.labels(outcome).inc()

    def seen(self, method: str, route: str, status: int, seconds: float) -> None:
        method = method if method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS") else "other"
        self._http.labels(method, route, str(status)).observe(seconds)
        if status in (401, 403, 413, 429, 503):
            self._rejects.labels(str(status)).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)
