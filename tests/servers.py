"""Servers for tests: on a free port of the loopback device, in a thread of this process."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import torch
import uvicorn

from pixelcascade.noise import Image
from pixelcascade.serve.run import Draining
from pixelcascade.stage import Draft, Space, StageStep


@contextlib.contextmanager
def served(app) -> Iterator[str]:
    """Its address, while it runs."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(64)
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=2, timeout_keep_alive=75)
    server = Draining(config, app.state.served, 5.0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    eventually(lambda: server.started)
    eventually(lambda: all(app.state.served.engine.ready.values()))
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        app.state.served.engine.close()
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive()


def eventually(true, seconds: float = 10.0) -> None:
    """Waits until it is. AssertionError when it is not in time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)


class Slow:
    """A stage that paints grey in so many steps, each of which waits; `at` says how far it is, `closed` how often it
    was cancelled. fault: raised in the step of that number."""

    def __init__(self, name="slow", side=8, steps=3, step_s=0.0, takes: Space | None = None):
        self.name, self.takes, self.gives = name, takes, Space(3, side, side)
        self.steps, self.step_s = steps, step_s
        self.at, self.closed, self.begun = 0, 0, 0
        self.batches: list[tuple[int, ...]] = []
        self.fault: dict[int, BaseException] = {}
        self.gate: threading.Event | None = None

    def refine(self, draft: Draft):
        self.begun += 1
        self.batches.append(draft.seeds)
        image: Image = torch.zeros(len(draft), *self.gives)
        try:
            for step in range(1, self.steps + 1):
                if self.gate is not None:
                    self.gate.wait(20)
                if self.step_s:
                    time.sleep(self.step_s)
                if step in self.fault:
                    raise self.fault.pop(step)
                self.at += 1
                yield StageStep(self.name, step, self.steps, image)
        except GeneratorExit:
            self.closed += 1
            raise
        return Draft(draft.contexts, draft.seeds, draft.negative, image, draft.settings)
