"""What share of the machine's matrix products the training steps of `emoji` reach, and where the rest goes.

    python benchmarks/share.py                        each stage in each setting, in turns: some 12 minutes
    python benchmarks/share.py --profile base         where the time of one stage goes, operation by operation

Steps are those of the training loop: objective, backward, clipping, optimizer and average. Each measurement is a
process of its own, in which steps and matrix products, of float32 and of bf16, take turns. Settings are the
environment's: huge pages by glibc, which keeps memory that was freed, and torch.compile, which needs a C++ compiler.
"""

import argparse
import os
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from pixelcascade.bench import matmul_rate
from pixelcascade.plan import RandomBatches, random_batch, step_flop
from pixelcascade.precision import bf16_is_faster
from pixelcascade.recipe import StageRecipe
from pixelcascade.recipes.emoji import emoji
from pixelcascade.train.loop import Budget, Run, Steps, fresh_state

HUGE = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=2147483648:"
    "glibc.malloc.trim_threshold=8589934592"
}
SETTINGS: dict[str, tuple[dict[str, str], bool]] = {  # the environment, and whether the network is compiled
    "plain": ({}, False),
    "huge pages": (HUGE, False),
    "compiled": ({}, True),
    "huge pages, compiled": (HUGE, True),
}
KINDS = {
    "convolutions": ("convolution", "mkldnn", "conv2d"),
    "matrix products": ("mm", "addmm", "linear", "bmm", "attention", "scaled_dot"),
    "norms": ("norm",),
    "SiLU and GELU": ("silu", "gelu"),
    "optimizer and average": ("adam", "foreach", "lerp"),
}


def steps_of(stage: StageRecipe) -> Steps:
    batches = RandomBatches(random_batch(stage, stage.training.micro or stage.training.batch))
    steps = Steps(Run(stage, batches, Budget(images=10**12), Path(os.devnull)), fresh_state(stage))
    for _ in range(3):
        steps.take()
    return steps


def timed(steps: Steps) -> float:
    before = steps.state.counters.seconds
    steps.take()
    return steps.state.counters.seconds - before


def measure(stage: StageRecipe, rounds: int) -> None:
    """Prints the shares of float32 and of bf16, seconds a step, the rates of both, and page faults a step."""
    flop, steps = step_flop(stage), steps_of(stage)
    shares, times, rates, faults = [], [], [products()], 0
    for _ in range(rounds):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        took = median(timed(steps) for _ in range(5))
        faults += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        rates.append(products())
        times.append(took)
        shares.append([flop / took * 2 / (one + two) for one, two in zip(*rates[-2:], strict=True)])
    steps.close()
    columns = [*zip(*shares, strict=True), times, *zip(*rates, strict=True)]
    print(*map(median, columns), faults / (5 * rounds))


def products() -> tuple[float, float]:
    """FLOP/s of matrix products in float32 and in bf16."""
    return matmul_rate("cpu", torch.float32), matmul_rate("cpu", torch.bfloat16)


def show_profile(stage: StageRecipe, count: int = 25) -> None:
    steps = steps_of(stage)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(4):
            steps.take()
    steps.close()
    own = Counter({event.key: event.self_cpu_time_total for event in profiled.key_averages()})
    kinds = Counter[str]()
    for name, spent in own.items():
        kinds[kind_of(name)] += spent
    for table in (kinds, own):
        print(
            *(f"{spent / own.total():7.1%}  {name}" for name, spent in table.most_common(count)), sep="\n", end="\n\n"
        )


def kind_of(name: str) -> str:
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")


def compare(found: list[StageRecipe], rounds: int, say: Callable[[str], None]) -> None:
    ours = "bf16" if bf16_is_faster("cpu") else "float32"
    say(
        f"| stage, in {ours} | setting | s a step | products, GFLOP/s: float32, bf16 | page faults a step | "
        "share of float32, of bf16 | against plain |"
    )
    say("|---|---|---|---|---|---|---|")
    for stage in found:
        rows: dict[str, list[list[float]]] = {setting: [] for setting in SETTINGS}
        for _ in range(rounds):
            for setting, (environment, compiled) in SETTINGS.items():
                command = [sys.executable, __file__, "--child", stage.name, *["--compile"] * compiled]
                done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
                if done.returncode:
                    say(f"{stage.name}, {setting}: {done.stderr.strip().splitlines()[-1]}")
                else:
                    rows[setting].append([float(word) for word in done.stdout.split()[-6:]])
        for setting, measured in rows.items():
            if not measured:
                continue
            whole, half, took, rate, rate_half, faults = (median(column) for column in zip(*measured, strict=True))
            gains = [one[0] / plain[0] for one, plain in zip(measured, rows["plain"], strict=False)]
            say(
                f"| {stage.name} | {setting} | {took:.3f} | {rate / 1e9:.0f}, {rate_half / 1e9:.0f} | {faults:,.0f} | "
                f"**{whole:.0%}**, {half:.0%} | {median(gains):.2f} ({min(gains):.2f} to {max(gains):.2f}) |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="The share of the machine that training steps reach.")
    parser.add_argument("--stages", nargs="*", default=["base", "sr256"])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--profile", metavar="STAGE")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    found = {stage.name: stage for stage in emoji().stages}
    if name := options.profile or options.child:
        stage = found[name]
        stage = replace(stage, training=replace(stage.training, compile=options.compile))
        show_profile(stage) if options.profile else measure(stage, 6)
    else:
        compare([found[name] for name in options.stages], options.rounds, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
