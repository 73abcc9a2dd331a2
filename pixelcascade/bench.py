"""How fast this machine is, and how much of it the networks use.

Everything is measured in one run, against the machine's own matrix products, since machines are noisy and differ.
FLOPs are counted once, on the meta device.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from pixelcascade.condition import Conditioning, Context
from pixelcascade.nn.efficient_unet import EfficientUNetConfig
from pixelcascade.nn.unet import UNetConfig
from pixelcascade.precision import autocast, bf16_is_faster
from pixelcascade.recipe import NETWORKS

Tell = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Case:
    """A network to be measured, at a size, with a batch for training."""

    name: str
    config: object
    side: int
    batch: int


def cases(quick: bool) -> list[Case]:
    """Both U-Nets at 64 and 256 px, of a size that two cores can train."""
    contexts = {"text": 384}
    widths, blocks = ((32, 64), (1, 1)) if quick else ((64, 128, 192), (2, 2, 2))
    deepest = (False,) * (len(widths) - 1) + (True,)
    kinds = ("none",) * (len(widths) - 1) + ("joined",)
    found = []
    for side, patch, batch in ((64, 2, 8), (256, 4, 1)):
        unet = UNetConfig(widths=widths, blocks=blocks, attention=deepest, contexts=contexts, patch=patch)
        efficient = EfficientUNetConfig(widths=widths, blocks=blocks, attention=kinds, contexts=contexts, patch=patch)
        found += [
            Case(f"U-Net, {side} px", unet, side, batch),
            Case(f"Efficient U-Net, {side} px", efficient, side, batch),
        ]
    return found


def matmul_rate(device: str, dtype: torch.dtype, side: int = 2048) -> float:
    """FLOP/s of a large matrix product: the ceiling that the shares refer to."""
    a = torch.randn(side, side, device=device).to(dtype)
    return 2 * side**3 / _seconds(lambda: a @ a, device)


@torch.random.fork_rng(devices=[])
def measure(model: str, device: str, quick: bool, tell: Tell) -> dict:
    """All figures as one JSON value."""
    dtype = torch.bfloat16 if bf16_is_faster(device) else torch.float32
    found = cases(quick)
    tell(0, len(found) + 1, "bench")
    ceiling = matmul_rate(device, dtype, 1024 if quick else 2048)
    report: dict = {
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "matmul_gflops": round(ceiling / 1e9, 1),
        "networks": [],
        "generate": [],
    }
    alone = ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1)  # peaks of memory never fall again
    with alone as processes:
        for done, row in enumerate(processes.map(_network, found, repeat(device), repeat(ceiling)), 1):
            report["networks"].append(row)
            tell(done, len(found) + 1, "bench")
    if Path(model).exists() or model in _bundled():
        report["generate"] = [_generate(model, size) for size in _sizes(model)[1 if not quick else 0 :]]
    tell(len(found) + 1, len(found) + 1, "bench")
    return report


def _bundled() -> list[str]:
    from pixelcascade.checkpoint import bundled

    return bundled()


def _sizes(model: str) -> list[int]:
    from pixelcascade.checkpoint import open_cascade

    return [height for height, _ in open_cascade(model).sizes]


def _network(case: Case, device: str, ceiling: float) -> dict:
    """One denoiser call and one training step of a network, in a process where nothing else has run."""
    before = peak_mb(device)
    network = NETWORKS[type(case.config)](case.config).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)

    def step(count: int, backward: bool) -> None:
        x = torch.randn(count, 3, case.side, case.side, device=device)
        context = Context(
            torch.randn(count, 16, 384, device=device), torch.ones(count, 16, dtype=torch.bool, device=device)
        )
        with torch.set_grad_enabled(backward), autocast(device, "auto"):
            loss = (
                network(x, torch.zeros(count, device=device), Conditioning({"text": context})).float().square().mean()
            )
        if backward:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    flops = _flops(case)
    call_s = _seconds(lambda: step(1, False), device)
    step_s = _seconds(lambda: step(case.batch, True), device)
    return {
        "name": case.name,
        "parameters": sum(p.numel() for p in network.parameters()),
        "forward_gflop": round(flops / 1e9, 2),
        "call_ms": round(call_s * 1e3, 1),
        "call_share": round(flops / call_s / ceiling, 3),
        "train_images_per_second": round(case.batch / step_s, 2),
        "train_share": round(3 * flops * case.batch / step_s / ceiling, 3),
        "memory_mb": round(max(0.0, peak_mb(device) - before)),
    }


def _flops(case: Case) -> int:
    """Of one forward pass for one image; attention counts on the meta device only."""
    with torch.device("meta"):
        network = NETWORKS[type(case.config)](case.config)
        context = Context(torch.empty(1, 16, 384), torch.ones(1, 16, dtype=torch.bool))
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, case.side, case.side), torch.empty(1), Conditioning({"text": context}))
    return counter.get_total_flops()


_PAINT = """
import sys, tempfile
from pixelcascade.bench import peak_mb
from pixelcascade.cli import application
with tempfile.TemporaryDirectory() as folder:
    command = ["generate", "a red apple, noto style", "--model", sys.argv[1], "--size", sys.argv[2], "-o", folder]
    application()(command, standalone_mode=False)
print(peak_mb("cpu"))
"""


def _generate(model: str, size: int) -> dict:
    """A cold `generate` in a process of its own: seconds from start to file, and its peak memory."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", _PAINT, model, str(size)], capture_output=True, text=True, check=True)
    seconds = time.monotonic() - began
    return {"size": size, "cold_seconds": round(seconds, 2), "peak_mb": round(float(done.stdout.split()[-1]))}


def _seconds(work: Callable[[], object], device: str, least_s: float = 1.0) -> float:
    """Median of repeated runs, after one to warm up."""
    work()
    times: list[float] = []
    while sum(times) < least_s or len(times) < 3:
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_mb(device: str) -> float:
    """The most memory that this process has held so far, on the device."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # Linux passes ru_maxrss on to the processes that one starts
        return next(int(line.split()[1]) for line in status.open() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def to_text(report: dict) -> str:
    """The figures as Markdown tables, for a README."""
    lines = [
        f"{report['device']}, {report['threads']} threads, torch {report['torch']}, {report['dtype']}: "
        f"matrix products at {report['matmul_gflops']} GFLOP/s",
        "",
        "| network | parameters | one call | share | training | share | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["networks"]:
        lines.append(
            f"| {row['name']} | {row['parameters'] / 1e6:.1f} M | {row['call_ms']} ms | {row['call_share']:.0%} | "
            f"{row['train_images_per_second']} images/s | {row['train_share']:.0%} | {row['memory_mb']} MB |"
        )
    if report["generate"]:
        lines += ["", "| `generate`, cold | seconds | peak memory |", "|---|---|---|"]
        lines += [f"| {row['size']} px | {row['cold_seconds']} | {row['peak_mb']} MB |" for row in report["generate"]]
    return "\n".join(lines)
