import numpy as np
import pytest
import small
import torch

import pixelcascade as pc
from pixelcascade.cascade import CascadeStep
from pixelcascade.guide import ClassifierFree, Limited
from pixelcascade.stage import Draft, Settings, Space, StageStep, run


@pytest.fixture
def cascade(tmp_path):
    return small.random_cascade(tmp_path)


def pixels(picture):
    return np.asarray(picture).astype(int)


def test_generate_gives_pictures_of_the_last_stage_or_of_the_size_asked_for(cascade):
    assert cascade.generate(["a red square"])[0].size == (16, 16)
    assert cascade.generate(["a red square"], size=8)[0].size == (8, 8)
    assert cascade.generate(["a red square"], size=12)[0].size == (12, 12)
    assert cascade.generate(["a red square"], size=(6, 8))[0].size == (8, 6)


def test_one_seed_gives_one_picture_whatever_the_batch(tmp_path):
    prompts, seeds = ["red", "a blue square with many words", "green"], [3, 4, 5]
    one_by_one = small.random_cascade(tmp_path, batch=1).generate(prompts, seeds)
    together = small.random_cascade(tmp_path, batch=3).generate(prompts, seeds)
    for a, b in zip(one_by_one, together, strict=True):
        assert abs(pixels(a) - pixels(b)).max() <= 1
    again = small.random_cascade(tmp_path, batch=1).generate(prompts, seeds)
    assert all((pixels(a) == pixels(b)).all() for a, b in zip(one_by_one, again, strict=True))


def test_each_prompt_is_encoded_once(cascade, monkeypatch):
    calls = []
    encoder = cascade.encoder
    whole = type(encoder).__call__
    monkeypatch.setattr(type(encoder), "__call__", lambda self, prompts: calls.append(prompts) or whole(self, prompts))
    cascade.generate(["red", "red", "blue"])
    assert calls == [["blue", "red"]]


def test_previews_come_stage_by_stage_and_the_last_is_the_picture(cascade):
    steps = list(cascade.stream(["a red square"], seeds=[0]))
    assert [(step.stage, step.index, step.of) for step in steps] == [
        (name, index, 3) for name in ("base", "larger") for index in (1, 2, 3)
    ]
    assert steps[0].preview.size == (8, 8) and steps[-1].preview.size == (16, 16)
    assert isinstance(steps[0], CascadeStep)
    (picture,) = cascade.generate(["a red square"], seeds=[0])
    assert (pixels(steps[-1].preview) == pixels(picture)).all()


def test_a_cascade_is_a_stage(cascade):
    from pixelcascade.cascade import Cascade

    outer = Cascade([cascade, Doubling("double", cascade.gives)], cascade.encoder)
    assert outer.generate(["red"])[0].size == (32, 32)
    (inner,) = cascade.generate(["red"])
    assert (pixels(outer.generate(["red"])[0])[::2, ::2] == pixels(inner)).all()


class Doubling:
    """A generator of another kind in the middle of a cascade."""

    def __init__(self, name, takes):
        self.name, self.takes, self.gives = name, takes, Space(takes.channels, 2 * takes.height, 2 * takes.width)

    def refine(self, draft: Draft):
        from dataclasses import replace

        image = draft.image.repeat_interleave(2, -1).repeat_interleave(2, -2)
        yield StageStep(self.name, 1, 1, image)
        return replace(draft, image=image)


def test_stages_that_do_not_fit_are_refused(tmp_path):
    base, larger = small.random_cascade(tmp_path).stages
    with pytest.raises(ValueError, match="base takes no image, but larger gives 16x16"):
        pc.Cascade([larger, base])
    with pytest.raises(ValueError, match="at least one stage"):
        pc.Cascade([])


def test_a_size_no_stage_gives_is_refused(cascade):
    with pytest.raises(ValueError, match="cannot paint 64x64 px; its stages give 8x8, 16x16"):
        cascade.generate(["red"], size=64)


def test_settings_of_an_unknown_stage_are_refused(cascade):
    with pytest.raises(ValueError, match="no stage 'bose'"):
        cascade.generate(["red"], settings={"bose": Settings(steps=2)})


def test_each_picture_of_a_long_request_has_its_own_weight_of_guidance(tmp_path):
    """Five pictures in batches of two: each as if it had been asked for alone."""
    prompts, seeds, scales = ["red", "green", "blue", "a red ball", "a cup"], [3, 4, 5, 6, 7], (0.0, 1.0, 4.0, 9.0, 2.0)
    cascade = small.random_cascade(tmp_path, batch=2)
    for guidance in (scales, Limited(ClassifierFree(scales), -2.0, 9.0)):
        settings = {"base": Settings(guidance=guidance)}
        together = cascade.generate(prompts, seeds, 8, settings=settings)
        for row, picture in enumerate(together):
            own = {"base": settings["base"].take([row])}
            (alone,) = cascade.generate(prompts[row : row + 1], seeds[row : row + 1], 8, settings=own)
            assert abs(pixels(picture) - pixels(alone)).max() <= 1
    plain = cascade.generate(prompts, seeds, 8, settings={"base": Settings(guidance=4.0)})
    differing = [abs(pixels(a) - pixels(b)).max() > 1 for a, b in zip(plain, cascade_of(cascade, scales), strict=True)]
    assert differing == [True, True, False, True, True]


def cascade_of(cascade, scales):
    settings = {"base": Settings(guidance=scales)}
    return cascade.generate(["red", "green", "blue", "a red ball", "a cup"], [3, 4, 5, 6, 7], 8, settings=settings)


def test_a_weight_for_each_image_or_one(cascade):
    with pytest.raises(ValueError, match="2 weights of guidance for stage 'base' and 3 prompts; give one weight, or"):
        cascade.generate(["red", "green", "blue"], settings={"base": Settings(guidance=(1.0, 2.0))})


def test_more_prompts_beside_each(tmp_path):
    cascade = small.random_cascade(tmp_path, batch=2)
    prompts, also = ["red", "green", "blue"], [("a yellow ball", 0.8), ("a cup", -0.5)]
    together = cascade.generate(prompts, [1, 2, 3], 8, also=also)
    plain = cascade.generate(prompts, [1, 2, 3], 8)
    for row, picture in enumerate(together):
        (alone,) = cascade.generate([prompts[row]], [row + 1], 8, also=also)
        assert abs(pixels(picture) - pixels(alone)).max() <= 1
        assert abs(pixels(picture) - pixels(plain[row])).max() > 1
    (weightless,) = cascade.generate(["red"], [1], 8, also=[("a yellow ball", 0.0)])
    assert abs(pixels(weightless) - pixels(plain[0])).max() <= 1
    *_, step = cascade.stream(["red"], [1], 8, also=also)
    assert abs(pixels(step.preview) - pixels(together[0])).max() <= 1


def test_weights_of_prompts_are_numbers(cascade):
    with pytest.raises(ValueError, match="the weight of 'blue' is nan"):
        cascade.generate(["red"], also=[("blue", float("nan"))])


def test_prompts_and_seeds_must_match(cascade):
    with pytest.raises(ValueError, match="2 prompts and 1 seeds"):
        cascade.generate(["red", "blue"], seeds=[1])


def test_the_global_generator_stays_where_it_was(cascade):
    before = torch.get_rng_state()
    cascade.generate(["red"])
    assert torch.equal(before, torch.get_rng_state())


def test_save_and_open_give_the_same_pictures(cascade, tmp_path):
    cascade.save(tmp_path / "saved")
    again = pc.open(tmp_path / "saved")
    assert (pixels(again.generate(["red"])[0]) == pixels(cascade.generate(["red"])[0])).all()


def test_another_encoder_than_that_of_training_is_refused(tmp_path):
    cascade = small.random_cascade(tmp_path)
    header = cascade.stages[0].header
    object.__setattr__(header.encoder, "fingerprint", "0" * 64)
    object.__setattr__(cascade.stages[1].header.encoder, "fingerprint", "0" * 64)
    with pytest.raises(ValueError, match="trained with encoder hash"):
        cascade.generate(["red"])


def test_a_misfit_draft_is_refused(cascade):
    with pytest.raises(ValueError, match="given no image"):
        run(cascade.stages[1], cascade.draft(cascade.requests(["red"])[0]))
