"""A suite painted: every prompt under a few seeds, with what to look for, and how well each category is matched."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from pixelcascade.cascade import Cascade, Request
from pixelcascade.evaluate.alignment import Pair, open_pair
from pixelcascade.evaluate.features import FeatureStore
from pixelcascade.evaluate.page import Page, Shown
from pixelcascade.evaluate.report import JSON, REPORT, percent, with_error, write_json
from pixelcascade.evaluate.samples import Samples, Tell, paint
from pixelcascade.evaluate.suite import WHOLE, Suite
from pixelcascade.stage import Settings


@dataclass(frozen=True)
class Painted:
    """What is asked of a cascade. seeds: of every prompt. settings: by stage, as in sampling."""

    cascade: Cascade
    suite: Suite
    seeds: tuple[int, ...]
    folder: Path
    pair: str = "aligned"
    settings: dict[str, Settings] = field(default_factory=dict)
    tell: Tell = field(default=lambda done, of, what: None)


def challenge(asked: Painted, out: Path) -> None:
    """Paints what is missing; writes report.json and report.html. ValueError, before painting: an unknown pair."""
    pair = open_pair(asked.pair)
    prompts = tuple(prompt for prompt in asked.suite.prompts for _ in asked.seeds)
    request = Request(prompts, asked.seeds * len(asked.suite.prompts), settings=asked.settings)
    samples = paint(asked.cascade, request, asked.folder, asked.tell)
    numbers = measured(asked, samples, pair)
    write_json(out / JSON, numbers)
    page_of(asked, samples, numbers).write(out / REPORT)


def measured(asked: Painted, samples: Samples, pair: Pair) -> dict[str, Any]:
    """By category, and of all: how well pictures match their prompts, beside how well they match the other prompts."""
    last, suite = asked.cascade.stages[-1].name, asked.suite
    features = FeatureStore(pair.extractor).of(samples.pixels(last), samples.count, asked.tell, "pictures of the suite")
    cosines = pair.of_features(features) @ pair.texts(suite.prompts).T
    found = matched(rearrange(cosines, "(p k) q -> p k q", p=len(suite.prompts)))
    places = {WHOLE: list(range(len(suite.prompts)))} | {name: suite.of(name) for name in suite.categories}
    return {
        "model": asked.cascade.name,
        "weights": {stage.name: stage.digest for stage in asked.cascade.kept()},
        "suite": suite.name,
        "seeds": list(asked.seeds),
        "pair": pair.name,
        "categories": {
            name: {
                "prompts": len(of),
                "score": over_prompts(found.score[of]),
                "score_of_others": None if found.others is None else float(found.others[of].mean()),
                "nearest": None if found.nearest is None else over_prompts(found.nearest[of]),
            }
            for name, of in places.items()
        },
        "prompts": [
            asdict(each) | {"score_of_each": scores}
            for each, scores in zip(suite.challenges, found.score.tolist(), strict=True)
        ],
    }


class Matched(NamedTuple):
    """Of each picture, prompt by seed. None: a suite of one prompt has no others.

    score: 2.5 * max(cosine, 0) with its own prompt, as in `clip_score`. others: the mean of it with the other prompts.
    nearest: 1 where no other prompt of the suite is as near as its own, else 0.
    """

    score: Float[Tensor, "p k"]
    others: Float[Tensor, "p k"] | None
    nearest: Float[Tensor, "p k"] | None


def matched(cosines: Float[Tensor, "p k p"]) -> Matched:
    """cosines: of each prompt's pictures with all prompts."""
    count = len(cosines)
    scores = 2.5 * cosines.clamp(min=0)
    own = torch.eye(count, dtype=torch.bool)[:, None].expand_as(cosines)
    score = rearrange(scores[own], "(p k) -> p k", p=count)
    if count == 1:
        return Matched(score, None, None)
    rivals = cosines.masked_fill(own, -torch.inf).amax(2)
    nearest = rearrange(cosines[own], "(p k) -> p k", p=count) > rivals
    return Matched(score, (scores.sum(2) - score) / (count - 1), nearest.to(scores.dtype))


def over_prompts(values: Float[Tensor, "p k"]) -> list[float | None]:
    """The mean, and its standard error from the spread over prompts; None for one prompt, or for prompts all alike.

    Pictures of one prompt resemble each other: counted as independent they would make the error too small. And 0 of 12
    is no certainty, as an error of 0 would have it.
    """
    means = values.double().mean(1)
    error = float(means.std() / len(means) ** 0.5) if len(means) > 1 else 0.0
    return [float(means.mean()), error or None]


def page_of(asked: Painted, samples: Samples, numbers: dict[str, Any]) -> Page:
    count = len(asked.suite.prompts)
    page = Page(
        f"{numbers['model']}: the suite {numbers['suite']}",
        f"{count} prompts, seeds {', '.join(map(str, asked.seeds))} of each. Under a prompt stands what to look for: "
        f"a person looks, and the numbers, of the pair {numbers['pair']}, only sort.",
    )
    page.section("By category")
    page.table(
        ["category", "prompts", "score", "of others", f"nearest of {count}"],
        [
            [
                name,
                row["prompts"],
                with_error(row["score"]),
                None if row["score_of_others"] is None else f"{row['score_of_others']:.4f}",
                percent(row["nearest"]),
            ]
            for name, row in numbers["categories"].items()
        ],
        "Score: 2.5 x cosine of picture and prompt; of others: with the suite's other prompts, what a picture "
        "scores that has nothing to do with its own. Nearest: how often a picture is nearer to its own prompt "
        f"than to all others; by chance {1 / count:.1%}. ± is a standard error over prompts.",
    )
    last, each = asked.cascade.stages[-1].name, len(asked.seeds)
    for category in asked.suite.categories:
        page.section(category.capitalize())
        for place in asked.suite.of(category):
            one = asked.suite.challenges[place]
            shown = [
                Shown(samples.path(last, place * each + k), f"{one.prompt} (seed {seed}). {one.look_for}".rstrip())
                for k, seed in enumerate(asked.seeds)
            ]
            page.strip(one.prompt, one.look_for, shown)
    page.section("All numbers")
    page.details("report.json", numbers)
    return page
