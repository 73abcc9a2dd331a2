"""In what numbers networks compute, and whether they are compiled."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

PRECISIONS = ("float32", "bf16", "fp16", "auto")


def bf16_pays(device: str) -> bool:
    """Whether bf16 is faster than float32 there: on GPUs that have it, on CPUs with AMX, and on AMD's with AVX512-BF16.

    Elsewhere on CPUs it is emulated, many times slower, or slow: Intel's AVX512-BF16 by itself, as virtual machines
    without AMX have it, does half as many products a second as float32. Asked of the processor's name and not of a
    clock, so that a run that goes on computes in what it began with.
    """
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return False
    has = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch cannot be asked
    return has.get("amx_bf16", False) or (has.get("avx512_bf16", False) and "AMD" in has.get("cpu_name", ""))


def autocast(device: str, precision: str) -> torch.autocast:
    """The context in which networks run; weights, losses and the optimizer stay in float32."""
    bf16 = precision == "bf16" or (precision == "auto" and bf16_pays(device))
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.partition(":")[0], dtype=dtype, enabled=bf16 or precision == "fp16")


@dataclass(frozen=True)
class Compute:
    """Where and how the networks of a model run when it samples.

    precision: "float32"; "bf16" or "fp16": weights and activations of half the size, faster on hardware that has them,
    pictures that differ a little; "auto": bf16 where it pays, else float32. compiled: by `torch.compile`: the
    first picture of each size and number waits for it, most of a minute, and later ones come faster.
    """

    device: str = "cpu"
    precision: str = "float32"
    compiled: bool = False

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; it is one of {', '.join(PRECISIONS)}")

    @property
    def numbers(self) -> str:
        """The precision, "auto" resolved."""
        if self.precision != "auto":
            return self.precision
        return "bf16" if bf16_pays(self.device) else "float32"

    def __call__(self, network: nn.Module) -> nn.Module:
        """The network, ready to be called; its weights are changed in place."""
        if self.numbers == "bf16" and not bf16_pays(self.device):
            warnings.warn(f"{self.device} computes bf16 more slowly than float32, or emulates it", stacklevel=2)
        if self.numbers != "float32":
            network = Narrowed(network, self.device, self.numbers)
        if self.compiled:
            network.compile()
        return network


class Narrowed(nn.Module):
    """A network that runs in bf16 or fp16: what multiplies is kept in it, norms and biases stay in float32."""

    def __init__(self, network: nn.Module, device: str, precision: str):
        super().__init__()
        self.network, self.device, self.precision = network, device, precision
        for weight in network.parameters():
            if weight.ndim > 1:
                weight.data = weight.data.to(torch.float16 if precision == "fp16" else torch.bfloat16)

    def forward(self, x: Tensor, logsnr: Tensor, cond) -> Tensor:
        with autocast(self.device, self.precision):
            return self.network(x, logsnr, cond)


def loss_scaler(device: str, precision: str) -> torch.amp.GradScaler:
    """Keeps gradients within float16's range: its scale halves when one overflows. For other numbers it does nothing.

    Micikevicius et al. 2018, section 3.2, with a scale that adapts.
    """
    return torch.amp.GradScaler(device.partition(":")[0], enabled=precision == "fp16")
