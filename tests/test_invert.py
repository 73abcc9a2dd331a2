"""Walking back: exact on every denoiser, of first order against the flow; and what lies between."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import small
import torch
from parts import F64, SCHEDULES, normal, text
from torch.testing import assert_close

from pixelcascade.condition import Conditioning
from pixelcascade.denoise import GaussianDenoiser, NetworkDenoiser
from pixelcascade.guide import ClassifierFree
from pixelcascade.invert import blended, invert, slerp, solve
from pixelcascade.noise import Cosine, VarianceExploding
from pixelcascade.parameterize import V
from pixelcascade.sample import DDIM, Ancestral, Reversible, ddim_step, grid
from pixelcascade.stage import DiffusionStage, Draft, Sampling, Settings, Space, result, run
from pixelcascade.streams import Streams
from pixelcascade.threshold import Static

COND = Conditioning()
GAUSS = GaussianDenoiser(0.3, 0.5)
NOISE = Streams((1, 2, 3), "test").normal("noise", (3, 8, 8))
IMAGES = (0.3 + 0.5 * Streams((4, 5, 6), "test").normal("image", (3, 8, 8))).clamp(-1, 1)


def wavy(x, logsnr, cond):
    return (2 * x + (logsnr / 8)[:, None, None, None]).sin()


def back(denoise, image, levels, sampler=Reversible(), **options):
    *_, last = invert(sampler, denoise, image, levels, COND, **options)
    return last.x_t


def forth(denoise, noise, levels, sampler=Reversible()):
    *_, last = sampler(denoise, levels[0].norm * noise, levels, COND, Streams(()))
    return last.x_t


class TestReversible:
    def test_ends_with_what_is_there_and_not_with_the_prediction(self):
        levels = grid(Cosine(-10.0, 10.0), 5)
        steps = list(Reversible(6.0)(GAUSS, NOISE, levels, COND, Streams(())))
        assert len(steps) == 5 and abs(float(steps[-1].level.logsnr) - 6.0) < 1e-4
        eps = steps[-1].level.eps(steps[-1].x_t * steps[-1].level.alpha, steps[-1].x0)
        assert eps.std() > 0.2
        assert_close(steps[-1].x_t, steps[-1].x0 + steps[-1].level.sigma / steps[-1].level.alpha * eps)

    def test_without_details_it_is_the_prediction(self):
        levels = grid(Cosine(-10.0, 10.0), 5)
        *_, last = Reversible(detail=0.0)(GAUSS, NOISE, levels, COND, Streams(()))
        assert torch.equal(last.x_t, last.x0)
        *_, half = Reversible(detail=0.5)(GAUSS, NOISE, levels, COND, Streams(()))
        *_, whole = Reversible()(GAUSS, NOISE, levels, COND, Streams(()))
        assert_close(half.x_t, (last.x_t + whole.x_t) / 2)

    def test_levels_go_from_the_same_noise_evenly_to_the_end(self):
        own = Reversible(6.0).levels(grid(Cosine(-10.0, 10.0), 8))
        expected = Cosine(-10.0, 6.0)(torch.linspace(1, 0, 9, dtype=F64))
        assert_close(own.alpha, expected.alpha.float())
        assert_close(own.sigma, expected.sigma.float())

    @pytest.mark.parametrize("name", SCHEDULES)
    def test_levels_of_every_schedule(self, name):
        levels = grid(SCHEDULES[name], 300)
        own = Reversible(4.0).levels(levels)
        assert len(own) == 301 and bool((own.logsnr.diff() > 0).all())
        assert_close(own.norm, torch.ones(301))
        assert_close(own[0].alpha, levels[0].unit().alpha)

    def test_refuses(self):
        with pytest.raises(ValueError, match=r"detail is 1\.5"):
            Reversible(detail=1.5)
        with pytest.raises(ValueError, match=r"end is -12\.0, but the noise begins at a log-SNR of -10\.0"):
            Reversible(-12.0).levels(grid(Cosine(-10.0, 10.0), 4))


class TestInvert:
    @pytest.mark.parametrize("name", SCHEDULES)
    @pytest.mark.parametrize("steps", [1, 3, 20])
    def test_there_and_back_on_the_exact_denoiser(self, name, steps):
        levels = grid(SCHEDULES[name], steps)
        for image in (IMAGES, forth(GAUSS, NOISE, levels)):
            noise = back(GAUSS, image, levels, tolerance=3e-6)
            assert_close(forth(GAUSS, noise, levels), image, rtol=0, atol=1e-4)

    def test_finds_the_noise_that_an_image_was_painted_from(self):
        levels = grid(Cosine(-10.0, 10.0), 20)
        assert_close(back(GAUSS, forth(GAUSS, NOISE, levels), levels, tolerance=1e-6), NOISE, rtol=0, atol=1e-3)

    @pytest.mark.parametrize("clip", [False, True])
    def test_there_and_back_where_predictions_bend(self, clip):
        """The error is what the tolerance leaves, and not that of the step."""
        denoise = NetworkDenoiser(wavy, V())
        denoise = Static()(denoise) if clip else denoise
        levels = grid(Cosine(-10.0, 10.0), 20)
        image = forth(denoise, 0.5 * NOISE, levels)
        errors = [
            float(
                (forth(denoise, back(denoise, image, levels, tolerance=tolerance, most=50), levels) - image)
                .abs()
                .mean()
            )
            for tolerance in (1e-2, 1e-3, 1e-5)
        ]
        assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3

    def test_is_of_first_order_against_the_flow(self):
        exact = Cosine(-10.0, 4.0)
        image = IMAGES.double()[:1]
        errors = []
        for steps in (32, 64, 128):
            levels = grid(exact, steps)
            sampler = Reversible(4.0)
            own = sampler.levels(levels)
            flow = GAUSS.flow(own[-1].alpha.double() * image, own[len(own) - 1], own[0])
            errors.append(float((back(GAUSS, image, levels, sampler, tolerance=1e-7) - flow).abs().max()))
        orders = [math.log2(a / b) for a, b in pairwise(errors)]
        assert all(abs(order - 1) < 0.15 for order in orders), (errors, orders)

    def test_an_image_does_not_depend_on_its_neighbours(self):
        denoise = NetworkDenoiser(wavy, V())
        levels = grid(Cosine(-10.0, 10.0), 6)
        hard = torch.cat([IMAGES[:1], 3 * NOISE[:1]])
        assert_close(back(denoise, hard, levels)[:1], back(denoise, IMAGES[:1], levels), rtol=0, atol=1e-6)

    def test_few_predictions_a_step(self):
        calls = []

        def denoise(x_t, level, cond):
            calls.append(float(level.logsnr))
            return GAUSS(x_t, level)

        back(denoise, IMAGES, grid(Cosine(-10.0, 10.0), 50))
        assert len(calls) <= 50 * 3
        assert max(calls) < 6.0  # never asked at a level that sampling does not visit

    def test_steps_go_from_the_image_to_the_noise(self):
        levels = grid(Cosine(-10.0, 10.0), 4)
        steps = list(invert(Reversible(), GAUSS, IMAGES, levels, COND))
        own = Reversible().levels(levels)
        assert [float(step.level.logsnr) for step in steps] == [float(own[i].logsnr) for i in (3, 2, 1, 0)]
        for stop, step in pairwise(steps):
            assert_close(ddim_step(step.x_t, step.x0, step.level, stop.level), stop.x_t, rtol=0, atol=1e-4)
            assert_close(step.x0, GAUSS(step.x_t, step.level), rtol=0, atol=1e-2)


class TestSolve:
    def test_converges_where_repeating_alone_does_not(self):
        """Slopes from 0.2 to 3 by pixel: x += miss alone diverges, since 1 - 3 is less than -1."""
        slope = torch.linspace(0.2, 3.0, 192).reshape(1, 3, 8, 8)

        def function(x):
            return slope * x + 0.05 * x.sin()

        goal = function(IMAGES)
        found = solve(function, goal, torch.zeros_like(IMAGES), 1.0, 1e-5, 60)
        assert (function(found) - goal).square().mean().sqrt() < 2e-5
        plain = torch.zeros_like(IMAGES)
        for _ in range(60):
            plain = plain + goal - function(plain)
        assert not bool((function(plain) - goal).abs().max() < 1.0)

    def test_the_best_is_kept_when_there_are_too_few_calls(self):
        def away(x):  # whose misses grow, whatever is done
            away.scale *= -3
            return x * 0 + away.scale

        away.scale = 1.0
        begin = torch.zeros(1, 1, 2, 2)
        assert torch.equal(solve(away, begin, begin, 1.0, 1e-6, 5), begin)

    def test_calls_are_counted(self):
        calls = []
        solve(lambda x: calls.append(1) or x * 0 + len(calls), NOISE, NOISE, 1.0, 1e-9, 7)
        assert len(calls) == 7

    def test_who_has_arrived_stays(self):
        def function(x):
            return torch.cat([x[:1], 0.3 * x[1:].sin()])

        goal = torch.cat([NOISE[:1], 0.1 * NOISE[1:2]])
        found = solve(function, goal, torch.cat([NOISE[:1], 0 * NOISE[:1]]), 1.0, 1e-6, 30)
        assert torch.equal(found[:1], NOISE[:1])


class TestSlerp:
    ONE, OTHER = normal(1, 2, 3, 16, 16), normal(2, 2, 3, 16, 16)

    def test_hits_the_ends(self):
        assert torch.equal(slerp(self.ONE, self.OTHER, 0.0), self.ONE)
        assert torch.equal(slerp(self.ONE, self.OTHER, 1.0), self.OTHER)

    def test_keeps_the_norm(self):
        other = self.OTHER / self.OTHER.flatten(1).norm(dim=1)[:, None, None, None]
        one = self.ONE / self.ONE.flatten(1).norm(dim=1)[:, None, None, None]
        for share in (0.1, 0.5, 0.9):
            assert_close(slerp(one, other, share).flatten(1).norm(dim=1), torch.ones(2))
        mixed = slerp(2 * one, 4 * other, 0.25).flatten(1).norm(dim=1)
        assert_close(mixed, torch.full((2,), 2.5))

    def test_turns_evenly(self):
        way = [slerp(self.ONE, self.OTHER, share).flatten(1).double() for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
        angles = [torch.cosine_similarity(a, b, dim=1).acos() for a, b in pairwise(way)]
        for angle in angles:
            assert_close(angle, angles[0], rtol=1e-4, atol=0)

    def test_equal_noises_are_between_themselves(self):
        assert_close(slerp(self.ONE, self.ONE, 0.3), self.ONE)
        assert_close(slerp(self.ONE, 2 * self.ONE, 0.5), 1.5 * self.ONE)


def reading(x_t, level, cond):
    """Predicts the mean of the first condition's tokens."""
    return x_t * 0 + cond.contexts["text"].tokens.mean((1, 2))[:, None, None, None]


def test_blended_predictions_are_mixed_and_prompts_need_not_be_of_one_length():
    one, other = text(1, 2, length=3), text(2, 2, length=7)
    cond = Conditioning({"text": one})
    level = Cosine()(torch.tensor(0.5))
    a, b = reading(NOISE[:2], level, cond), reading(NOISE[:2], level, Conditioning({"text": other}))
    for share, expected in ((0.0, a), (1.0, b), (0.25, 0.75 * a + 0.25 * b)):
        assert_close(blended(reading, {"text": other}, share)(NOISE[:2], level, cond), expected)


def stage_of(sampling, takes=None, lowres=None, denoise=GAUSS):
    return DiffusionStage("s", takes, Space(3, 8, 8), denoise, sampling, lowres)


class TestStage:
    @pytest.mark.parametrize("schedule", [Cosine(-10.0, 10.0), VarianceExploding()])
    def test_paints_the_image_that_it_inverted(self, schedule):
        sampling = Sampling(Reversible(), 12, ClassifierFree(1.0), None, schedule)
        stage = stage_of(sampling)
        draft = Draft({"text": text(1, 3)}, (7, 8, 9))
        done = result(stage.invert(draft, IMAGES))
        assert done.image is None and 0.2 < float(done.noise["s"].std()) < 3
        assert_close(run(stage, done).painted, IMAGES, rtol=0, atol=1e-3)

    def test_a_super_resolution_stage_inverts_given_its_input(self):
        recipe = small.larger()
        network = recipe.build().eval()
        generator = torch.Generator().manual_seed(0)
        for parameter in network.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        stage = recipe.stage(network)
        stage = replace(stage, sampling=replace(stage.sampling, sampler=Reversible(), steps=20))
        low = IMAGES.flip(0)
        draft = Draft({"text": text(1, 3, dim=64)}, (1, 2, 3), image=low)
        large = torch.nn.functional.interpolate(low, size=(16, 16))
        done = result(stage.invert(draft, large))
        assert torch.equal(done.painted, low)
        assert_close(run(stage, done).painted, large, rtol=0, atol=0.02)
        with pytest.raises(ValueError, match="given no image"):
            next(stage.invert(replace(draft, image=None), large))

    def test_noise_that_is_given_is_what_it_starts_from(self):
        stage = stage_of(Sampling(DDIM(), 3, ClassifierFree(1.0), None, VarianceExploding()))
        draft = Draft({}, (7, 8, 9))
        drawn = Streams((7, 8, 9), "s").normal("start", (3, 8, 8))
        assert torch.equal(stage.noise(draft), drawn)
        plain = run(stage, draft).painted
        assert torch.equal(run(stage, replace(draft, noise={"s": drawn})).painted, plain)
        assert torch.equal(run(stage, replace(draft, noise={"other": NOISE})).painted, plain)
        assert not torch.equal(run(stage, replace(draft, noise={"s": NOISE})).painted, plain)

    def test_refuses(self):
        stage = stage_of(Sampling(DDIM(), 3, ClassifierFree(1.0)))
        with pytest.raises(ValueError, match=r"the shape \(3, 3, 8, 4\)"):
            stage.noise(Draft({}, (1, 2, 3), noise={"s": NOISE[..., :4]}))
        for sampler in (DDIM(), Ancestral(), Reversible(detail=0.5)):
            draft = Draft({}, (1,), settings={"s": Settings(sampler=sampler)})
            with pytest.raises(ValueError, match="only Reversible"):
                next(stage.invert(draft, IMAGES[:1]))
