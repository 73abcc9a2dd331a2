"""In what numbers networks compute, and whether they are compiled."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PRECISIONS = ("float32", "bf16", "fp16", "auto")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def bf16_is_native(device: str) -> bool:
    """Whether bf16 is computed in hardware; elsewhere it is emulated and many times slower than float32."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def bf16_is_faster(device: str) -> bool:
    """Whether bf16 is computed faster than float32.

    Intel's AVX-512 has instructions for it, but multiplies it half as fast as float32: convolutions took 1.7 times as
    long, training steps 1.6 times. Its AMX is faster, and so is the AVX-512 of others.
    """
    if device != "cpu" or not bf16_is_native(device):
        return bf16_is_native(device)
    known = getattr(torch.cpu, "get_capabilities", dict)()  # younger than the oldest torch that we run on
    return torch.cpu._is_amx_tile_supported() or "Intel" not in known.get("cpu_name", "")


def autocast(device: str, precision: str) -> torch.autocast:
    """The context in which networks run; weights, losses and the optimizer stay in float32."""
    bf16 = precision == "bf16" or (precision == "auto" and bf16_is_faster(device))
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.partition(":")[0], dtype=dtype, enabled=bf16 or precision == "fp16")


@dataclass(frozen=True)
class Compute:
    """Where and how the networks of a model run when it samples.

    precision: "float32"; "bf16" or "fp16": weights of half the size, and pictures that differ a little, see `Narrowed`;
    "auto": bf16 where that is faster, else float32. compiled: by `torch.compile`: the first picture of each size and
    number waits for it, most of a minute, and later ones come faster.
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
        return "bf16" if bf16_is_faster(self.device) else "float32"

    def kept(self, weight: Tensor) -> Tensor:
        """A weight as the network holds it: in what numbers, in what order in memory.

        Kernels lie channels_last, as maps do: oneDNN then takes 8 % less time for a convolution, orders being mended in
        every call.
        """
        if not weight.is_floating_point():
            return weight
        weight = weight.to(DTYPES.get(self.numbers, torch.float32) if weight.ndim > 1 else torch.float32)
        return weight.contiguous(memory_format=torch.channels_last) if weight.ndim == 4 else weight

    def __call__(self, network: nn.Module) -> nn.Module:
        """The network, ready to be called; its weights are changed in place."""
        for weight in network.parameters():
            weight.data = self.kept(weight.data)
        if self.numbers != "float32":
            network = Narrowed(network, self.device, self.numbers)
        if self.compiled:
            network.compile()
        return network


class Narrowed(nn.Module):
    """A network whose kernels and matrices are kept in bf16 or fp16; norms and biases stay in float32.

    Where the hardware is faster in these numbers it computes in them. Elsewhere it computes in float32: each layer
    widens its weights when it runs, which costs 4 % of a convolution's time at 64 px.
    """

    def __init__(self, network: nn.Module, device: str, precision: str):
        super().__init__()
        self.network, self.device, self.precision = network, device, precision
        self.wide = device == "cpu" and not (precision == "bf16" and bf16_is_faster(device))
        if self.wide:
            for module in network.modules():
                module.__class__ = _WIDE.get(type(module), type(module))

    def forward(self, x: Tensor, logsnr: Tensor, cond) -> Tensor:
        if self.wide:
            return self.network(x, logsnr, cond)
        with autocast(self.device, self.precision):
            return self.network(x, logsnr, cond)


class _WideConv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight.to(input.dtype), self.bias)


class _WideLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype), self.bias)


_WIDE: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: _WideConv2d, nn.Linear: _WideLinear}


def loss_scaler(device: str, precision: str) -> torch.amp.GradScaler:
    """Keeps gradients within float16's range: its scale halves when one overflows. For other numbers it does nothing.

    Micikevicius et al. 2018, section 3.2, with a scale that adapts.
    """
    return torch.amp.GradScaler(device.partition(":")[0], enabled=precision == "fp16")
