"""Between what users type and what stages take: settings by stage, and the provenance that pictures carry."""

from dataclasses import dataclass

from pixelcascade.cascade import Cascade, Request
from pixelcascade.config import from_json, to_json
from pixelcascade.metadata import Provenance
from pixelcascade.names import nearest
from pixelcascade.sample import SAMPLERS
from pixelcascade.stage import Settings


@dataclass(frozen=True)
class Choices:
    """As typed. steps, guidance: numbers by stage, in order, "16,8,8"; stages beyond the last keep their own.

    sampler, aug_snr: for every stage (the latter for those that take an image).
    """

    steps: str | None = None
    guidance: str | None = None
    sampler: str | None = None
    aug_snr: float | None = None


def settings_of(cascade: Cascade, choices: Choices) -> dict[str, Settings]:
    """Settings by stage name. ValueError for what is not a number, out of range, or one number too many."""
    steps = _by_stage("--steps", choices.steps, int, len(cascade.stages))
    guidance = _by_stage("--guidance", choices.guidance, float, len(cascade.stages))
    if choices.aug_snr is not None and choices.aug_snr <= 0:
        raise ValueError(f"--aug-snr is {choices.aug_snr}; it must be positive, usually 3 to 20")
    sampler = None
    if choices.sampler is not None:
        if choices.sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {choices.sampler!r}{nearest(choices.sampler, SAMPLERS)}")
        sampler = SAMPLERS[choices.sampler]
    return {
        stage.name: Settings(count, scale, choices.aug_snr if stage.takes is not None else None, sampler)
        for stage, count, scale in zip(cascade.stages, steps, guidance, strict=True)
    }


def _by_stage(option: str, text: str | None, kind: type, count: int) -> list:
    if text is None:
        return [None] * count
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} is {text!r}; it is numbers by stage, such as 16,8,8") from None
    if len(values) > count:
        raise ValueError(f"{option} has {len(values)} numbers, but the model has {count} stages")
    low = 1 if kind is int else 0
    if min(values) < low:
        raise ValueError(f"{option} is {text!r}; each number is at least {low}")
    return values + [None] * (count - len(values))


def provenance_of(cascade: Cascade, request: Request, model: str) -> list[Provenance]:
    """What each picture of a request says of itself."""
    height, width = request.size or cascade.sizes[-1]
    stages = {}
    for stage in cascade.until(request.size).kept():
        sampling = request.settings.get(stage.name, Settings()).apply(stage.sampling)
        stages[stage.name] = {
            "steps": sampling.steps,
            "guidance": sampling.guidance.scale,
            "aug_snr": sampling.aug_snr,
            "sampler": type(sampling.sampler).__name__,
            "sampling": to_json(sampling),
            "weights": stage.digest,
        }
    precision = next((stage.precision for stage in cascade.kept()), "float32")
    return [
        Provenance(prompt, seed, model, width, height, request.negative, stages, precision=precision)
        for prompt, seed in zip(request.prompts, request.seeds, strict=True)
    ]


def request_again(cascade: Cascade, provenance: Provenance) -> Request:
    """The request that painted a picture. ValueError when it takes more, or when other weights did."""
    if provenance.noise is not None:
        raise ValueError(
            f"the picture was painted from {provenance.noise}, not from its seed alone; see docs/latents.md"
        )
    settings: dict[str, Settings] = {}
    by_name = {stage.name: stage for stage in cascade.kept()}
    for name, row in provenance.stages.items():
        if name not in by_name or by_name[name].digest != row["weights"]:
            raise ValueError(
                f"stage {name!r} of {provenance.model!r} has other weights than those that painted the picture "
                f"({row['weights']}); use pixelcascade {provenance.version}"
            )
        sampling = from_json(row["sampling"])
        settings[name] = Settings(sampling.steps, sampling.guidance.scale, sampling.aug_snr, sampling.sampler)
    size = (provenance.height, provenance.width)
    return Request((provenance.prompt,), (provenance.seed,), size, provenance.negative, settings)
