"""Draws the pictures of docs/latents.md, from pictures that the bundled model was not trained on.

    python scripts/latents.py data/emoji

Writes docs/latents/NAME.webp.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import PIL.Image

import pixelcascade as pc
from pixelcascade.data.read import Examples, open_examples
from pixelcascade.image import sheet, to_pictures
from pixelcascade.latents import EXACT, Latent, blend, fitted, invert, paint, shares
from pixelcascade.metadata import save_animation
from pixelcascade.sample import Reversible
from pixelcascade.stage import Settings

OUT = Path(__file__).resolve().parent.parent / "docs" / "latents"
SHOWN = 128  # px of each picture
EDITED = {
    "a mushroom, noto style": ("a mushroom, fluent flat style", "a green apple, noto style", "a red heart, noto style"),
    "a tiger face, fluent flat style": (
        "a tiger face, twemoji style",
        "a panda face, fluent flat style",
        "a black silhouette of a tiger face, black silhouette style",
    ),
    "a pool 8 ball, fluent flat style": (
        "a pool 8 ball, noto style",
        "a lemon, fluent flat style",
        "a tennis ball, fluent flat style",
    ),
    "a spouting whale, twemoji style": (
        "a spouting whale, noto style",
        "a pig, twemoji style",
        "a red car, twemoji style",
    ),
}
PAIRS = (
    ("a tiger face, fluent flat style", "a kissing cat, twemoji style"),
    ("a mushroom, noto style", "an octopus, fluent flat style"),
    ("a pool 8 ball, fluent flat style", "a lime, fluent flat style"),
    ("a locked padlock, firefox style", "a beaver, noto style"),
)
MIXED = "a mushroom, noto style", Latent("a red heart, fluent 3d style", 0)
PROMPTS = (
    (Latent("a red heart, fluent 3d style", 3), Latent("a blue heart, fluent 3d style", 3)),
    (Latent("a red apple, noto style", 0), Latent("a lemon, noto style", 0)),
    (Latent("a grinning face, noto style", 0), Latent("a grinning face, twemoji style", 0)),
    (Latent("a red heart, fluent 3d style", 3), Latent("a house, noto style", 5)),
)


def picture_of(examples: Examples, caption: str) -> PIL.Image.Image:
    row = next(row for row in range(len(examples)) if caption in examples.captions(row))
    return examples.picture(row, 256)


def save(name: str, pictures: Sequence[PIL.Image.Image], columns: int) -> None:
    shown = [each.resize((SHOWN, SHOWN), PIL.Image.Resampling.LANCZOS) for each in pictures]
    sheet(shown, columns).save(OUT / f"{name}.webp", quality=85, method=6)
    print(OUT / f"{name}.webp", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    examples = open_examples(parser.parse_args().data, "validation")
    OUT.mkdir(parents=True, exist_ok=True)
    cascade = pc.open("emoji")
    captions = sorted({*EDITED, *(caption for pair in PAIRS for caption in pair)})
    originals = {caption: fitted(cascade, picture_of(examples, caption)) for caption in captions}
    latents = dict(zip(captions, invert(cascade, list(originals.values()), captions), strict=True))

    rows = []
    for caption, others in EDITED.items():
        latent = latents[caption]
        assert latent.noise is not None
        edits = [replace(latent, prompt=other) for other in others]
        guided = {"base": Settings(guidance=2.0, sampler=Reversible(detail=0.0))}
        rows += [originals[caption], *to_pictures(latent.noise / 3), paint(cascade, latent, (64, 64))]
        rows += [paint(cascade, edit, (256, 256), guided) for edit in edits]
    save("edits", rows, 6)

    frames = [list(blend(cascade, latents[a], latents[b], shares(7), (256, 256))) for a, b in PAIRS]
    caption, words = MIXED
    (found,) = invert(cascade, [originals[caption]], [caption], replace(EXACT, guidance=None))
    frames.append(list(blend(cascade, found, words, shares(7), (256, 256))))
    save("pictures", [picture for row in frames for picture in row], 7)
    film = list(blend(cascade, latents[PAIRS[0][0]], latents[PAIRS[0][1]], shares(13), (128, 128)))
    save_animation(OUT / "tiger-cat.webp", film, 3.0)
    frames = [list(blend(cascade, a, b, shares(7), (256, 256))) for a, b in PROMPTS]
    save("prompts", [picture for row in frames for picture in row], 7)


if __name__ == "__main__":
    main()
