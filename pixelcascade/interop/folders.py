"""Folders of diffusers: a DeepFloyd IF pipeline's U-Net becomes a stage of ours, and a stage becomes such a folder.

    IF-I-M-v1.0/
      unet/          config.json and diffusion_pytorch_model.safetensors, or .fp16.safetensors, or an index of several
      text_encoder/  tokenizer/     T5, which the stage's encoder mark then names
      scheduler/     image_noising_scheduler/     how it samples

Only safetensors and JSON are read.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pixelcascade.cascade import EncoderMark
from pixelcascade.checkpoint import Header, SavedStage
from pixelcascade.condition import Lowres
from pixelcascade.encode.text import TextEncoder, open_encoder, parse_name
from pixelcascade.files import write_atomically
from pixelcascade.guide import ClassifierFree
from pixelcascade.interop.deepfloyd import (
    SCHEDULE,
    STEPS,
    DeepFloydConfig,
    read_config,
    to_ours,
    to_theirs,
    write_config,
)
from pixelcascade.objective import Denoising, EpsWeight
from pixelcascade.parameterize import Eps
from pixelcascade.quantize import dequantize
from pixelcascade.recipe import StageRecipe
from pixelcascade.sample import DPMSolver2M
from pixelcascade.stage import Sampling, Space
from pixelcascade.threshold import Dynamic, Static, Threshold

WEIGHTS = "diffusion_pytorch_model"
FACTOR = 4  # of IF's super-resolution
NOISE = 250  # the step of the noise on the low-resolution image that diffusers takes by default


def read_deepfloyd(
    folder: Path, encoder: str | None = None, variant: str | None = None, name: str | None = None
) -> tuple[Header, dict[str, Tensor]]:
    """A stage's header and weights from a pipeline's folder, or from that of its U-Net alone.

    encoder: the T5 of its training, None: the one in the folder. variant: of the weights, such as "fp16"; None: the
    whole ones if they are there. name: of the stage; None: base, or sr and its size. ValueError, in one line, for
    whatever is no U-Net of IF.
    """
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    data = _read_json(unet / "config.json")
    try:
        config = read_config(data)
        weights = to_ours(config, _read_weights(unet, variant))
    except ValueError as error:
        raise ValueError(f"{unet}: {error}") from None
    opened = _open_t5(folder, encoder, config)
    weights["embed.context.null"] = opened([""]).pad(config.tokens).tokens[0]
    stage = _recipe(config, data.get("sample_size"), _scheduler(folder), name)
    source = {"from": f"diffusers, {data.get('_name_or_path') or folder.resolve().name}"}
    return Header(stage, EncoderMark(opened.name, opened.fingerprint), source), weights


def write_deepfloyd(stage: SavedStage, folder: Path) -> None:
    """The stage as a folder that diffusers' `UNet2DConditionModel` and `DDPMScheduler` read, without its text encoder.

    ValueError: its network is another.
    """
    recipe = stage.header.recipe
    if not isinstance(recipe.network, DeepFloydConfig):
        kind = type(recipe.network).__name__.removesuffix("Config")
        raise ValueError(f"{stage.path} is a {kind}; diffusers has a place for the networks of DeepFloyd IF alone")
    weights = to_theirs(recipe.network, dequantize(stage.weights()))
    whole = {name: weight.contiguous() for name, weight in weights.items()}
    write_atomically(folder / "unet" / f"{WEIGHTS}.safetensors", save(whole, {"format": "pt"}))
    _write_json(folder / "unet" / "config.json", write_config(recipe.network, recipe.gives.height))
    scheduler = _scheduler_of(recipe.sampling.threshold, recipe.network.variance)
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    if recipe.network.lowres:
        _write_json(folder / "image_noising_scheduler" / "scheduler_config.json", _COSINE)


_COSINE = {"_class_name": "DDPMScheduler", "num_train_timesteps": STEPS, "beta_schedule": "squaredcos_cap_v2"}


# -- weights ---------------------------------------------------------------------------------------------------------


def _read_weights(unet: Path, variant: str | None) -> dict[str, Tensor]:
    """All tensors of a variant, None: of the first that is there, whole ones first. Mapped, not read."""
    variants = [variant] if variant else [None, "fp16"]
    for each in variants:
        found = _files(unet, f".{each}" if each else "")
        if found:
            return {name: tensor for path in found for name, tensor in _load(path).items()}
    there = sorted(path.name for path in unet.glob("*") if path.suffix in (".safetensors", ".bin"))
    other = f"it has {', '.join(there)}" if there else "it has no weights at all"
    wanted = f"{WEIGHTS}{f'.{variant}' if variant else ''}.safetensors"
    raise ValueError(f"there is no {wanted}, and only safetensors are read; {other}")


def _files(unet: Path, variant: str) -> list[Path]:
    """The one file, or those that the index names."""
    single, index = unet / f"{WEIGHTS}{variant}.safetensors", unet / f"{WEIGHTS}.safetensors.index{variant}.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        return []
    names = sorted(set(_read_json(index)["weight_map"].values()))
    if any(Path(name).name != name for name in names):
        raise ValueError(f"{index.name} names a file outside its folder; mend it")
    return [unet / name for name in names]


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name} is not a whole safetensors file ({error}); copy or download it again") from None


# -- the text encoder ------------------------------------------------------------------------------------------------


def _open_t5(folder: Path, encoder: str | None, config: DeepFloydConfig) -> TextEncoder:
    """The encoder, of as many tokens as IF reads, padding included."""
    if encoder is None:
        if not (folder / "text_encoder").is_dir():
            raise ValueError(
                f"{folder} has no text_encoder; say which one with --encoder t5:FOLDER (IF was trained with that of "
                "google/t5-v1_1-xxl)"
            )
        encoder = f"t5:{folder.resolve()}"
    name = parse_name(encoder)
    if name.kind in ("t5", "clip", "hf"):
        asked = [f"length={config.tokens}"] if name.length is None else []
        asked += ["padded=1"] if name.padded is None else []
        encoder = "&".join([encoder if "?" in encoder or not asked else f"{encoder}?{asked.pop(0)}", *asked])
    opened = open_encoder(encoder)
    if opened.dim != config.contexts["text"]:
        raise ValueError(f"{encoder} gives tokens {opened.dim} wide, but this network reads {config.contexts['text']}")
    if opened.length != config.tokens:
        raise ValueError(f"{encoder} gives {opened.length} tokens, but this network reads {config.tokens}")
    return opened


# -- the recipe ------------------------------------------------------------------------------------------------------


def _recipe(
    config: DeepFloydConfig, size: int | list[int] | None, scheduler: Mapping[str, Any], name: str | None
) -> StageRecipe:
    """As IF was trained, and as its authors sample it but for the solver. diffusers: pipelines/deepfloyd_if."""
    height, width = size if isinstance(size, list) else (size or (256 if config.lowres else 64),) * 2
    gives = Space(config.channels, height, width)
    takes = Space(config.channels, height // FACTOR, width // FACTOR) if config.lowres else None
    lowres = Lowres(SCHEDULE, corners=True) if config.lowres else None
    level = SCHEDULE(torch.tensor((NOISE + 1) / STEPS, dtype=torch.float64))
    sampling = Sampling(
        DPMSolver2M(),
        steps=50,
        guidance=ClassifierFree(4.0 if config.lowres else 7.0),
        threshold=_threshold(scheduler, config.lowres),
        schedule=SCHEDULE,
        aug_snr=math.exp(level.logsnr) if config.lowres else None,
    )
    objective = Denoising(SCHEDULE, EpsWeight(), lowres=lowres)
    name = name or (f"sr{height}" if config.lowres else "base")
    return StageRecipe(name, takes, gives, config, Eps(), objective, sampling)


def _scheduler(folder: Path) -> dict[str, Any]:
    """Of the pipeline; empty where there is none. ValueError: it is for a network with another schedule or output."""
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return {}
    data = _read_json(path)
    for key, value in (("beta_schedule", "squaredcos_cap_v2"), ("prediction_type", "epsilon")):
        if data.get(key, value) != value:
            raise ValueError(f"{path}: {key} is {data[key]!r}; DeepFloyd IF has {value!r}")
    if data.get("num_train_timesteps", STEPS) != STEPS:
        raise ValueError(f"{path}: num_train_timesteps is {data['num_train_timesteps']}; DeepFloyd IF has {STEPS}")
    return data


def _threshold(scheduler: Mapping[str, Any], lowres: bool) -> Threshold:
    quantile = scheduler.get("dynamic_thresholding_ratio", 0.95)
    most = scheduler.get("sample_max_value", 1.0 if lowres else 1.5)
    return Dynamic(quantile, float(most)) if scheduler.get("thresholding", True) and most > 1 else Static()


def _scheduler_of(threshold: Threshold | None, variance: bool) -> dict[str, Any]:
    dynamic = threshold if isinstance(threshold, Dynamic) else Dynamic(0.95, 1.0)
    return {
        **_COSINE,
        "prediction_type": "epsilon",
        "variance_type": "learned_range" if variance else "fixed_small",
        "thresholding": threshold is not None,
        "dynamic_thresholding_ratio": dynamic.quantile,
        "sample_max_value": dynamic.most or 1e6,
        "clip_sample": threshold is not None,
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"there is no {path}; give the folder of a pipeline in diffusers' layout") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); copy it again") from None


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(data, indent=2) + "\n").encode())
