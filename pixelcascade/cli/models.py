"""`assemble`."""

from pathlib import Path
from typing import Annotated

import typer

from pixelcascade.cli.paint import GuideBy


def assemble(
    parts: Annotated[list[str], typer.Argument(help="Models, stages or runs; a later stage replaces its namesake.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the model, new or empty.")],
    name: Annotated[str | None, typer.Option(help="What it is called, else like its folder.")] = None,
    weights: Annotated[str, typer.Option(help="As they are (kept), float32, float16, bfloat16, or int8.")] = "kept",
    guide_by: GuideBy = None,
) -> None:
    """Make one model of stages: trained, distilled, bundled; with smaller weights if asked to."""
    from pixelcascade.cascade import Cascade
    from pixelcascade.checkpoint import DTYPES, guided_by, open_cascade, save_cascade, saved_stages
    from pixelcascade.names import nearest

    if weights != "kept" and weights not in DTYPES:
        raise ValueError(f"--weights is {weights!r}{nearest(weights, ['kept', *DTYPES])}")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; choose a new --out")
    stages = {}
    for part in parts:
        stages |= {stage.name: stage for stage in saved_stages(open_cascade(part))[0]}
    cascade = Cascade(list(stages.values()), name=name or out.name)
    if guide_by is not None:
        cascade = guided_by(cascade, open_cascade(guide_by))
    cascade = save_cascade(saved_stages(cascade)[0], out, cascade.name, DTYPES.get(weights))
    for stage in saved_stages(cascade)[0]:
        print(f"{stage.path}  {stage.path.stat().st_size / 1e6:,.1f} MB")
