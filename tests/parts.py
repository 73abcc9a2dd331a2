"""Every part by name, for tests that hold for all of them, and small helpers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pixelcascade.condition import Context
from pixelcascade.noise import (
    Cosine,
    Discrete,
    ImprovedCosine,
    Linear,
    LogNormal,
    NoiseLevel,
    Rectified,
    Schedule,
    Shifted,
    VarianceExploding,
    for_size,
)
from pixelcascade.parameterize import X0, Eps, Flow, Karras, V

SCHEDULES = {
    "cosine": Cosine(),
    "wide cosine": Cosine(-20.0, 20.0),
    "improved cosine": ImprovedCosine(),
    "linear": Linear(),
    "shifted": Shifted(Cosine(), 4.0),
    "for 256 px": for_size(256),
    "rectified": Rectified(),
    "exploding": VarianceExploding(),
    "geometric": VarianceExploding(rho=None),
    "discrete": Discrete(),
    "log-normal": LogNormal(),
}
PARTS = {"x0": X0(), "eps": Eps(), "v": V(), "flow": Flow(), "karras": Karras(), "karras 1.3": Karras(1.3)}

F64 = torch.float64


def normal(seed: int, *shape: int, dtype=torch.float32) -> torch.Tensor:
    """Standard normal numbers from a generator of their own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Networks draw their weights from the global generator, which is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def times(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def level(alpha: float, sigma: float, dtype=F64) -> NoiseLevel:
    return NoiseLevel(torch.tensor(alpha, dtype=dtype), torch.tensor(sigma, dtype=dtype))


def rescaled(levels: NoiseLevel, factor) -> NoiseLevel:
    """The same log-SNR at another scale of x_t."""
    return NoiseLevel(levels.alpha * factor, levels.sigma * factor)


class Rescaled:
    """A schedule whose x_t is larger by a factor that changes with time, and whose log-SNR is that of `base`."""

    def __init__(self, base: Schedule):
        self.base = base

    def __call__(self, t):
        return rescaled(self.base(t), 1.5 + torch.sin(5 * t))


def text(seed: int, count: int, length: int = 3, dim: int = 4) -> Context:
    """Random tokens, of which the last is padding."""
    mask = torch.ones(count, length, dtype=torch.bool)
    mask[:, -1] = False
    return Context(normal(seed, count, length, dim), mask)
