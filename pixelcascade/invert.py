"""From an image back to the noise that it is painted from, and what lies between two noises and two prompts.

A step of DDIM, backwards, asks for the prediction at its noisier end, which is not known yet. Taking the one at the
other end instead is wrong by the square of the step; errors add up, and what is painted again is another image. So each
step is solved: which x_start does the sampler take to x_stop? Anderson's acceleration needs two or three predictions
for that, and converges where repeating the equation does not: in long steps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from pixelcascade.condition import Conditioning, Context
from pixelcascade.denoise import Denoiser
from pixelcascade.noise import Image, NoiseLevel
from pixelcascade.sample import Reversible, Step, ddim_step

_MEMORY = 4  # steps that Anderson's acceleration looks back on


def invert(
    sampler: Reversible,
    denoise: Denoiser,
    image: Image,
    levels: NoiseLevel,
    cond: Conditioning,
    tolerance: float = 3e-5,
    most: int = 20,
) -> Iterator[Step]:
    """The steps of `sampler` on `levels`, walked back: the first starts at the image, the last ends in the noise.

    tolerance: the root mean square by which a step from what is found may miss where it should end. most: predictions a
    step, for images that do not get there; then the best is taken.
    """
    levels = sampler.levels(levels)
    x_t = levels[-1].alpha * image
    x0 = denoise(x_t, levels[-2], cond)  # at the level where the last step begins, as in sampling
    for index in reversed(range(len(levels) - 1)):
        start, stop = levels[index], levels[index + 1]

        def forth(x: Image, start=start, stop=stop) -> Image:
            return ddim_step(x, denoise(x, start, cond), start, stop)

        guess = ddim_step(x_t, x0, stop, start)  # on along the line of the step before
        slope = float(start.alpha * stop.alpha + start.sigma * stop.sigma)  # of independent numbers of unit variance
        found = solve(forth, x_t, guess, 1 / slope, tolerance, most)
        x0 = _line(found, x_t, start, stop)
        x_t = found
        yield Step(start, x_t, x0)


def _line(x_start: Image, x_stop: Image, start: NoiseLevel, stop: NoiseLevel) -> Image:
    """The x0 with which one step of DDIM goes from one to the other: `ddim_step`, solved for it."""
    start, stop = start.like(x_start), stop.like(x_stop)
    ratio = stop.sigma / start.sigma
    return (x_stop - ratio * x_start) / (stop.alpha - ratio * start.alpha)


def solve(function: Callable[[Image], Image], goal: Image, x: Image, gain: float, tolerance: float, most: int) -> Image:
    """For each image by itself, an x with function(x) = goal, beginning at the one given.

    Repeats x += gain (goal - function(x)), accelerated. gain: about 1 over the slope of the function. tolerance: of the
    root mean square of what is missed; most: calls.
    """
    tried: list[Image] = []
    missed: list[Image] = []
    best, least = x, torch.full((len(x),), torch.inf, device=x.device)
    for _ in range(most):
        miss = goal - function(x)
        error = miss.flatten(1).square().mean(1).sqrt()
        better = (error < least) & (least > tolerance)  # whoever has arrived stays, however long the others take
        best, least = torch.where(better[:, None, None, None], x, best), torch.where(better, error, least)
        if bool((least <= tolerance).all()):
            break
        tried, missed = [*tried[-_MEMORY:], x], [*missed[-_MEMORY:], miss]
        x = _accelerated(tried, missed, gain)
    return best


def _accelerated(tried: Sequence[Image], missed: Sequence[Image], gain: float) -> Image:
    """The next x: from the mixture of those tried whose miss is smallest, if misses are linear in x.

    Walker & Ni 2011, algorithm AA, with the mixture by differences as in their eq. 2.2.
    """
    x, miss = tried[-1], missed[-1]
    if len(tried) == 1:
        return x + gain * miss
    moves, changes = _differences(tried), _differences(missed)
    products = (changes @ changes.mT).double().cpu()
    ridge = 1e-6 * products.diagonal(dim1=1, dim2=2).mean(1) + 1e-30  # misses that hardly differ say nothing
    products = products + ridge[:, None, None] * torch.eye(products.shape[1], dtype=products.dtype)
    weights = torch.linalg.solve(products, (changes @ miss.flatten(1)[..., None]).double().cpu())
    return x + gain * miss - ((moves + gain * changes).mT @ weights.to(x)).reshape(x.shape)


def _differences(images: Sequence[Image]) -> Float[Tensor, "b n d"]:
    return torch.stack([after - before for before, after in pairwise(images)], 1).flatten(2)


def slerp(one: Image, other: Image, share: float) -> Image:
    """Between two noises along the arc from `one` (share 0) to `other` (1), for each image. Shoemake 1985.

    A straight line passes nearer to 0, where noise of many numbers never is. Different norms are mixed linearly.
    """
    norms = [each.flatten(1).norm(dim=1) for each in (one, other)]
    cosine = (one * other).flatten(1).sum(1) / (norms[0] * norms[1])
    angle = cosine.clamp(-1, 1).acos()
    norm = torch.lerp(norms[0], norms[1], share)

    def part(share: float, own: Tensor) -> Tensor:
        weight = torch.where(angle < 1e-3, share, (share * angle).sin() / angle.sin())
        return (weight * (norm / own))[:, None, None, None]

    return part(1 - share, norms[0]) * one + part(share, norms[1]) * other


def blended(denoise: Denoiser, others: Mapping[str, Context], share: float) -> Denoiser:
    """Predictions between those for the words that are given (share 0) and those for `others` (1), by condition.

    Each of the two is a prediction for words that somebody could have written, which tokens in between are not, and
    prompts need not be of one length. Under guidance the two directions are mixed (Liu et al. 2022, eq. 11).
    """

    def mixed(x_t: Image, level: NoiseLevel, cond: Conditioning) -> Image:
        there = cond.once("blend", lambda: replace(cond, contexts={**cond.contexts, **others}, _memory={}))
        return torch.lerp(denoise(x_t, level, cond), denoise(x_t, level, there), share)

    return mixed
