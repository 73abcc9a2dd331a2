"""Guidance: functions from denoiser to denoiser that move the prediction further in the direction of the condition.

Scale 1 is no guidance; 0 is the unguided prediction. Guidance is linear, so it is the same in x0, eps or v;
thresholding comes after it, and samplers compute eps from the result.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelcascade.condition import Conditioning
from pixelcascade.denoise import Denoiser, double
from pixelcascade.noise import Image, NoiseLevel


@dataclass(frozen=True)
class ClassifierFree:
    """x0 = unguided + scale * (conditional - unguided), both in one batched call.

    scale: one for all images, or one for each. The unguided half sees the negative contexts where there are any, else
    the null contexts, and the same low-resolution image with the same noise. Ho & Salimans 2022, eq. 6; in the scale of
    Saharia et al. 2022, eq. 2.
    """

    scale: float | Sequence[float] = 1.0

    def __call__(self, denoise: Denoiser) -> Denoiser:
        if self.scale == 1:
            return denoise

        def guided(x_t: Image, level: NoiseLevel, cond: Conditioning) -> Image:
            if not cond.contexts:
                return denoise(x_t, level, cond)
            both = cond.once("guidance", lambda: cond.cat(cond.unguided()))
            conditional, unguided = denoise(*double(x_t, level), both).chunk(2)
            scale = torch.as_tensor(self.scale, dtype=x_t.dtype, device=x_t.device).reshape(-1, 1, 1, 1)
            return unguided + scale * (conditional - unguided)

        return guided


@dataclass(frozen=True)
class Absorbed:
    """The guidance of a distilled stage: one call, of a network that has it inside and is told its weight.

    scale: one for all images, or one for each; what lies outside the range that the student was trained for is moved to
    its nearer end, with a warning. lowest, highest: that range; where it is one weight, the network is not told any.
    Meng et al. 2022, section 3.1.
    """

    scale: float | Sequence[float]
    lowest: float
    highest: float

    def __post_init__(self):
        if not self.lowest <= self.highest:
            raise ValueError(f"lowest is {self.lowest}, which is more than highest, {self.highest}")

    @property
    def within(self) -> Tensor:
        """The scales, moved into the range; a warning says which were not."""
        asked = torch.as_tensor(self.scale, dtype=torch.float32)
        scale = asked.clamp(self.lowest, self.highest)
        if not torch.equal(asked, scale):
            known = f"{self.lowest:g} to {self.highest:g}" if self.lowest < self.highest else f"{self.lowest:g} alone"
            outside = asked[asked != scale].flatten()[0]
            warnings.warn(f"guidance {outside:g} is outside what the stage was distilled for, {known}", stacklevel=2)
        return scale

    def __call__(self, denoise: Denoiser) -> Denoiser:
        scale = self.within

        def guided(x_t: Image, level: NoiseLevel, cond: Conditioning) -> Image:
            if cond.negative is not None:
                raise ValueError("a distilled stage has guidance inside and takes no negative prompt; its teacher does")
            if self.lowest == self.highest:
                return denoise(x_t, level, cond)
            told = cond.once("guidance", lambda: cond.told(scale.to(x_t.device).expand(len(x_t)).clone()))
            return denoise(x_t, level, told)

        return guided
