"""Small recipes and data that tests share: no network, no files of the outside, seconds on a CPU."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from pixelcascade.cascade import Cascade, EncoderMark
from pixelcascade.checkpoint import Header, open_stage, save_stage
from pixelcascade.condition import Lowres
from pixelcascade.encode.text import open_encoder
from pixelcascade.guide import ClassifierFree
from pixelcascade.nn.transformer import PatchTransformerConfig
from pixelcascade.noise import Cosine
from pixelcascade.objective import Denoising, VWeight
from pixelcascade.parameterize import V
from pixelcascade.recipe import Recipe, StageRecipe, Training
from pixelcascade.sample import DPMSolver2M
from pixelcascade.stage import Sampling, Space

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "yellow": (240, 200, 40)}


def base(side: int = 8) -> StageRecipe:
    network = PatchTransformerConfig(
        size=(side, side), patch=4, fine=2, width=64, depth=1, ends=16, context_depth=0, contexts={"text": 64}
    )
    return StageRecipe(
        "base",
        None,
        Space(3, side, side),
        network,
        V(),
        Denoising(Cosine(-10.0, 10.0), VWeight()),
        Sampling(DPMSolver2M(), 3, ClassifierFree(2.0), schedule=Cosine(-10.0, 10.0)),
        Training(batch=4, rate=1e-3, warmup=8, images=64, precision="float32"),  # sums that agree on every machine
    )


def larger(side: int = 8) -> StageRecipe:
    small = base(side)
    return replace(
        small,
        name="larger",
        takes=Space(3, side, side),
        gives=Space(3, 2 * side, 2 * side),
        network=replace(small.network, size=(2 * side, 2 * side), lowres=True),
        objective=replace(small.objective, lowres=Lowres(most=0.5)),
        sampling=replace(small.sampling, aug_snr=10.0),
    )


def recipe() -> Recipe:
    return Recipe("small", "hash", (base(), larger()))


def save_random(stage: StageRecipe, folder: Path, seed: int = 0) -> Path:
    """A stage with random weights, none of them zero, as a file."""
    network = stage.build()
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(weight.shape, generator=generator) * 0.2 for name, weight in network.state_dict().items()
    }
    encoder = EncoderMark("hash", open_encoder("hash").fingerprint)
    path = folder / stage.name / "model.safetensors"
    save_stage(path, Header(stage, encoder, {"images": 0}), weights)
    return path


def random_cascade(folder: Path, **options) -> Cascade:
    return Cascade([open_stage(save_random(stage, folder)) for stage in recipe().stages], name="small", **options)


def write_pictures(folder: Path, count: int = 16, side: int = 32) -> Path:
    """A data set: flat coloured squares on white, with captions in .txt files."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        name = list(COLOURS)[index % len(COLOURS)]
        pixels = np.full((side, side, 3), 255, np.uint8)
        margin = 2 + index // len(COLOURS) % 4
        pixels[margin:-margin, margin:-margin] = COLOURS[name]
        PIL.Image.fromarray(pixels).save(folder / f"{index:03d}.png")
        (folder / f"{index:03d}.txt").write_text(f"a {name} square")
    return folder
