"""From what is typed to settings, and from pictures back to requests."""

import re
from dataclasses import replace

import PIL.Image
import pytest
import small
import torch
from parts import normal, text
from torch.testing import assert_close

from pixelcascade.cascade import Request
from pixelcascade.checkpoint import guided_by, open_cascade, open_stage
from pixelcascade.condition import Conditioning
from pixelcascade.guide import Absorbed, Auto, ClassifierFree, Limited, Oscillating, Rescaled
from pixelcascade.metadata import Provenance, read_provenance, save_picture
from pixelcascade.noise import Cosine
from pixelcascade.requests import (
    Choices,
    cascade_again,
    parse_also,
    provenance_of,
    request_again,
    settings_of,
    with_weaker,
)
from pixelcascade.stage import Settings, Space


@pytest.fixture(scope="module")
def cascade(tmp_path_factory):
    return small.random_cascade(tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="module")
def weaker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weaker")
    return open_cascade(small.save_random(small.base(), folder, seed=9).parent)


def carried(cascade, request, folder) -> list[Provenance]:
    """What the pictures of a request say of themselves, written and read."""
    made = provenance_of(cascade, request, "model")
    for row, each in enumerate(made):
        save_picture(folder / f"{row}.png", PIL.Image.new("RGB", (8, 8)), each)
    return [read_provenance(folder / f"{row}.png") for row in range(len(made))]


class TestGuide:
    def test_kinds_go_to_the_first_stage_or_to_the_one_named(self, cascade):
        settings = settings_of(cascade, Choices(guidance="5", guide=("limited:low=-2", "larger=oscillating:low=0")))
        assert settings["base"].guidance == Limited(ClassifierFree(5.0), low=-2.0)
        assert settings["larger"].guidance == Oscillating(ClassifierFree(2.0), 0.0)  # with the stage's own weight

    def test_weights_alone(self, cascade):
        settings = settings_of(cascade, Choices(guidance="5,3"))
        assert (settings["base"].guidance, settings["larger"].guidance) == (5.0, 3.0)
        assert settings_of(cascade, Choices())["base"].guidance is None

    def test_a_stage_that_does_not_say_how_it_samples(self, cascade):
        class Twice:
            name, takes, gives = "twice", Space(3, 16, 16), Space(3, 32, 32)

            def refine(self, draft):
                raise NotImplementedError

        longer = cascade.of([*cascade.stages, Twice()])
        assert settings_of(longer, Choices(guidance="5,3,2"))["twice"].guidance == 2.0
        with pytest.raises(ValueError, match="'twice' does not say how it samples"):
            settings_of(longer, Choices(guide=("twice=limited",)))

    def test_a_distilled_stage_is_refused_before_anything_is_painted(self, tmp_path):
        recipe = replace(small.base(), sampling=replace(small.base().sampling, guidance=Absorbed(2.0, 2.0, 2.0)))
        distilled = open_cascade(small.save_random(recipe, tmp_path).parent)
        assert settings_of(distilled, Choices(guidance="2"))["base"].guidance == 2.0
        for guide in ("limited", "oscillating", "rescaled", "plain"):
            with pytest.raises(ValueError, match="distilled stage has its guidance inside"):
                settings_of(distilled, Choices(guide=(guide,)))


class TestWeaker:
    def test_guides_where_nothing_else_is_said(self, cascade, weaker):
        both, guide = with_weaker(cascade, weaker, ())
        assert guide == ("base=auto",) and both.stages[0].weaker is weaker.stages[0]
        assert settings_of(both, Choices(guide=guide))["base"].guidance == Auto(2.0)
        assert with_weaker(cascade, weaker, ("plain",))[1] == ("plain",)
        assert with_weaker(cascade, weaker, ("larger=limited",))[1] == ("larger=limited", "base=auto")
        assert with_weaker(cascade, None, ("limited",)) == (cascade, ("limited",))

    def test_is_beside_its_stage(self, cascade, weaker):
        x_t, level, cond = (
            normal(1, 2, 3, 8, 8),
            Cosine()(torch.tensor(0.6)),
            Conditioning({"text": text(2, 2, dim=64)}),
        )
        strong, weak = (each.stages[0].denoise(x_t, level, cond) for each in (cascade, weaker))
        both = guided_by(cascade, weaker).stages[0].load().denoise
        assert_close(both(x_t, level, cond), strong)
        assert_close(Auto(3.0)(both)(x_t, level, cond), 3 * strong - 2 * weak)

    def test_is_saved_with_its_stage(self, cascade, weaker, tmp_path):
        guided_by(cascade, weaker).save(tmp_path / "both")
        base, larger = open_cascade(tmp_path / "both").stages
        assert base.weaker.digest == weaker.stages[0].digest and larger.weaker is None
        assert base.digest == cascade.stages[0].digest

    def test_is_read_when_it_is_first_asked(self, cascade, weaker, tmp_path):
        guided_by(cascade, weaker).save(tmp_path / "both")
        both = open_cascade(tmp_path / "both")
        both.generate(["red"], size=8)
        assert both.stages[0].weaker._stage is None
        both.generate(["red"], size=8, settings={"base": Settings(guidance=Auto(2.0))})
        assert both.stages[0].weaker._stage is not None

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda one: replace(one, network=replace(one.network, contexts={"text": 32})), "it reads other words"),
            (
                lambda one: replace(one, sampling=replace(one.sampling, guidance=Absorbed(2.0, 2.0, 2.0))),
                "one of them is distilled",
            ),
        ],
    )
    def test_must_be_of_the_same_pictures_and_words(self, cascade, tmp_path, change, said):
        other = open_cascade(small.save_random(change(small.base()), tmp_path).parent)
        with pytest.raises(ValueError, match=f"cannot guide stage 'base': {said}"):
            guided_by(cascade, other)


class TestAlso:
    def test_what_stands_behind_the_last_colon_is_the_weight(self):
        assert parse_also(["a leaf:0.5", "ratio 3:4:-1", "x::2"]) == (("a leaf", 0.5), ("ratio 3:4", -1.0), ("x:", 2.0))

    @pytest.mark.parametrize("typed", ["a leaf", "a leaf:", "a leaf:much", ":0.5", "  :1", ""])
    def test_mistakes(self, typed):
        with pytest.raises(ValueError, match=re.escape(f"--and is {typed!r}; it is TEXT:WEIGHT, such as '")):
            parse_also([typed])


class TestAgain:
    def test_each_picture_says_its_own_weight(self, cascade, tmp_path):
        settings = {"base": Settings(guidance=Rescaled(ClassifierFree((1.5, 4.0)))), "larger": Settings(guidance=3.0)}
        request = Request(("red", "blue"), (3, 4), None, None, settings, (("a cup", -0.5),))
        first, second = carried(cascade, request, tmp_path)
        assert first.stages["base"]["guidance"] == 1.5 and second.stages["base"]["guidance"] == 4.0
        again = request_again(cascade, second)
        assert again.settings["base"].guidance == Rescaled(ClassifierFree(4.0))
        assert again.settings["larger"].guidance == ClassifierFree(3.0)
        assert again.also == request.also and again.prompts == ("blue",) and again.seeds == (4,)

    def test_a_weaker_stage_is_found_where_it_was(self, cascade, weaker, tmp_path):
        both = guided_by(cascade, weaker)
        request = Request(("red",), (3,), None, None, {"base": Settings(guidance=Auto(2.0))})
        (made,) = carried(both, request, tmp_path)
        assert made.stages["base"]["weaker"]["weights"] == weaker.stages[0].digest
        assert "weaker" not in made.stages["larger"]
        assert cascade_again(cascade, made).stages[0].weaker.digest == weaker.stages[0].digest
        assert cascade_again(both, made).stages[0] is both.stages[0]
        (plain,) = carried(both, replace(request, settings={}), tmp_path)
        assert "weaker" not in plain.stages["base"] and cascade_again(cascade, plain) is cascade

    def test_another_one_is_refused(self, cascade, weaker, tmp_path):
        request = Request(("red",), (3,), None, None, {"base": Settings(guidance=Auto(2.0))})
        (made,) = carried(guided_by(cascade, weaker), request, tmp_path)
        other = small.save_random(small.base(), tmp_path, seed=10)
        for path, said in ((other, "has other weights now"), (tmp_path / "nowhere", "is not there any more")):
            made.stages["base"]["weaker"]["path"] = str(path)
            with pytest.raises(ValueError, match=f"stage 'base' was guided by {path} .*which {said}; name its copy by"):
                cascade_again(cascade, made)
        assert open_stage(other).weaker is None
