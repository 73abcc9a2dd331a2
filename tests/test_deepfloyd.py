"""DeepFloyd IF: the same numbers as diffusers computes, and weights and configurations there and back."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from parts import normal, seeded
from safetensors.torch import load_file, save_file
from test_encode_text import save_tiny
from torch.testing import assert_close
from typer.testing import CliRunner

import pixelcascade as pc
from pixelcascade.checkpoint import SavedStage, open_stage, read_header
from pixelcascade.cli import application
from pixelcascade.condition import Conditioning, Context, Lowres
from pixelcascade.config import from_json, to_json
from pixelcascade.denoise import NetworkDenoiser
from pixelcascade.guide import ClassifierFree
from pixelcascade.interop.deepfloyd import (
    SCHEDULE,
    DeepFloyd,
    DeepFloydConfig,
    nearest_step,
    pairs,
    read_config,
    to_ours,
    to_theirs,
    write_config,
)
from pixelcascade.noise import NoiseLevel
from pixelcascade.parameterize import Eps
from pixelcascade.sample import DDIM
from pixelcascade.streams import Streams
from pixelcascade.threshold import Static

SHARED = {
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 4,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim": 16,
    "encoder_hid_dim_type": "text_proj",
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift",
    "sample_size": 16,
}
ONE = SHARED | {
    "in_channels": 3,
    "block_out_channels": [32, 64],
    "layers_per_block": 2,
    "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
}
TWO = SHARED | {
    "in_channels": 6,
    "block_out_channels": [32, 32, 64],
    "layers_per_block": [1, 2, 1],
    "down_block_types": ["ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"],
    "class_embed_type": "timestep",
    "mid_block_scale_factor": 1.4142271248762552,
    "resnet_out_scale_factor": 1.4142271248762552,
    "resnet_skip_time_act": True,
    "time_embedding_act_fn": "gelu",
    "time_embedding_dim": 48,
}
SMALL = {"one": ONE, "two": TWO, "crossed": TWO | {"only_cross_attention": True}}
LARGE = {  # what is published of them, where it differs from the small ones
    "IF-I-XL": ONE
    | {
        "addition_embed_type_num_heads": 64,
        "attention_head_dim": 64,
        "block_out_channels": [704, 1408, 2112, 2816],
        "cross_attention_dim": 2816,
        "down_block_types": ["ResnetDownsampleBlock2D", *3 * ["SimpleCrossAttnDownBlock2D"]],
        "encoder_hid_dim": 4096,
        "layers_per_block": 3,
        "sample_size": 64,
        "up_block_types": [*3 * ["SimpleCrossAttnUpBlock2D"], "ResnetUpsampleBlock2D"],
    },
    "IF-II-L": TWO
    | {
        "addition_embed_type_num_heads": 64,
        "attention_head_dim": 64,
        "block_out_channels": [160, 320, 640, 960, 1280],
        "cross_attention_dim": 1280,
        "down_block_types": [*3 * ["ResnetDownsampleBlock2D"], *2 * ["SimpleCrossAttnDownBlock2D"]],
        "encoder_hid_dim": 4096,
        "layers_per_block": [2, 2, 3, 5, 5],
        "sample_size": 256,
        "time_embedding_dim": 1280,
        "up_block_types": [*2 * ["SimpleCrossAttnUpBlock2D"], *3 * ["ResnetUpsampleBlock2D"]],
    },
}
SIZES = {"IF-I-XL": 4.3e9, "IF-II-L": 1.2e9}
GOLDEN = {
    "one": [0.50156, -0.63666, -0.10948, -0.04046, 0.32599, -1.65198],
    "two": [0.66551, 0.45696, -0.12895, -0.7284, 0.00207, 0.87328],
}


def weights(config: DeepFloydConfig) -> dict[str, torch.Tensor]:
    """The same on any machine; nothing is zero, and activations keep their size."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in DeepFloyd(config).state_dict().items()}
    made = {}
    for seed, (name, shape) in enumerate(sorted(shapes.items())):
        inputs = max(1, shape.numel() // shape[0]) if len(shape) > 1 else 25
        made[name] = normal(seed, *shape) / inputs**0.5 + (1.0 if "norm.weight" in name else 0.0)
    return made


def ours(config: DeepFloydConfig) -> DeepFloyd:
    with torch.device("meta"):
        network = DeepFloyd(config)
    network.load_state_dict(weights(config), assign=True)
    return network.eval()


def theirs(data: dict, config: DeepFloydConfig):
    """diffusers' network with the weights that ours has."""
    diffusers = pytest.importorskip("diffusers")
    with seeded(0):
        network = diffusers.UNet2DConditionModel(**data).eval()
    network.load_state_dict(to_theirs(config, weights(config)))
    return network


def text(real: int = 77) -> Context:
    """Two texts; of the first so many tokens are real, and the rest is 0, as encoders give it."""
    mask = torch.ones(2, 77, dtype=torch.bool)
    mask[0, real:] = False
    return Context(normal(1, 2, 77, 16).masked_fill(~mask[..., None], 0), mask)


def step(*steps: int) -> NoiseLevel:
    return SCHEDULE((torch.tensor(steps) + 1) / 1000)


def paint(network: DeepFloyd, context: Context, t: tuple[int, int] = (700, 40)) -> torch.Tensor:
    lowres = (normal(3, 2, 3, 16, 16), step(250, 0).logsnr) if network.config.lowres else (None, None)
    with torch.no_grad():
        return network(normal(2, 2, 3, 16, 16), step(*t).logsnr, Conditioning({"text": context}, None, *lowres))


def paint_theirs(network, context: Context | None, tokens: torch.Tensor, t: tuple[int, int] = (700, 40)):
    x, more = normal(2, 2, 3, 16, 16), {}
    if network.config.class_embed_type:
        x, more = torch.cat([x, normal(3, 2, 3, 16, 16)], dim=1), {"class_labels": torch.tensor([250, 0])}
    mask = None if context is None else context.mask
    with torch.no_grad():
        return network(x, torch.tensor(t), tokens, encoder_attention_mask=mask, **more).sample[:, :3]


@pytest.fixture(params=SMALL)
def case(request):
    return request.param


class TestNumbers:
    @pytest.mark.parametrize("t", [(999, 998), (700, 40), (1, 0)], ids=str)
    def test_are_those_of_diffusers(self, case, t):
        config, context = read_config(SMALL[case]), text()
        expected = paint_theirs(theirs(SMALL[case], config), None, context.tokens, t)
        assert_close(paint(ours(config), context, t), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))

    @pytest.mark.parametrize("case", ["one", "two"])  # diffusers fails on masks where attention is crossed
    def test_with_a_mask_as_well(self, case):
        config, context = read_config(SMALL[case]), text(real=5)
        expected = paint_theirs(theirs(SMALL[case], config), context, context.tokens)
        found = paint(ours(config), Context(context.tokens.masked_fill(~context.mask[..., None], 9.0), context.mask))
        assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        assert (found - paint(ours(config), text())).abs().max() > 1e-2

    @pytest.mark.parametrize("case", GOLDEN)
    def test_stay_what_they_were(self, case):
        """Where diffusers is not installed: what it computed once."""
        found = paint(ours(read_config(SMALL[case])), text(real=5))
        assert_close(found[:, :, 5, 7].flatten(), torch.tensor(GOLDEN[case]), rtol=0, atol=1e-4)

    def test_the_empty_text_stands_for_no_text(self):
        network = ours(read_config(ONE))
        null = Context(network.embed.context.null.expand(2, -1, -1), torch.ones(2, 77, dtype=torch.bool))
        known = paint(network, null)
        assert_close(paint(network, text().drop(torch.tensor([True, True]))), known)
        only_one = paint(network, text().drop(torch.tensor([True, False])))
        assert_close(only_one[:1], known[:1], atol=1e-5, rtol=0)
        assert_close(only_one[1:], paint(network, text())[1:], atol=1e-5, rtol=0)

    def test_longer_texts_are_refused(self):
        with pytest.raises(ValueError, match="reads 77 tokens, not 80; open its encoder with length=77"):
            paint(ours(read_config(ONE)), text().pad(80))

    def test_the_nearest_step(self):
        every = torch.arange(1000)
        assert torch.equal(nearest_step(step(*every.tolist()).logsnr), every.float())
        ends = torch.tensor([float("inf"), 30.0, -30.0, -float("inf")])
        assert nearest_step(ends).tolist() == [0, 0, 999, 999]
        between = (step(500).logsnr + step(501).logsnr) / 2
        assert nearest_step(between + 1e-3).tolist() == [500] and nearest_step(between - 1e-3).tolist() == [501]


class TestSampling:
    """Whole runs of DDIM on the same noise, with guidance and clipping."""

    @pytest.mark.parametrize("case", ["one", "two"])
    @pytest.mark.parametrize("spacing", ["trailing", "leading"])
    def test_is_that_of_diffusers(self, case, spacing):
        config, context, noise = read_config(SMALL[case]), text(), normal(5, 2, 3, 16, 16)
        network, steps, scale = theirs(SMALL[case], config), 8, 3.0
        scheduler = self.scheduler(spacing, steps)
        lowres = normal(3, 2, 3, 4, 4).clamp(-1, 1)
        level, streams = step(250)[0], Streams((7, 8), "sr")
        cond = Conditioning({"text": context})
        if config.lowres:
            cond = Lowres(SCHEDULE, corners=True).condition(cond, lowres, level, (16, 16), streams)
        levels = step(*scheduler.timesteps.tolist())
        levels = NoiseLevel(torch.cat([levels.alpha, torch.ones(1)]), torch.cat([levels.sigma, torch.zeros(1)]))
        denoise = Static()(ClassifierFree(scale)(NetworkDenoiser(ours(config), Eps())))
        x, states = noise, []
        with torch.no_grad():
            for taken in DDIM()(denoise, noise, levels, cond, streams):
                states.append(taken.x_t)
            for index, t in enumerate(scheduler.timesteps):
                pair = torch.cat([x, x])
                more = {}
                if config.lowres:
                    pair = torch.cat([pair, torch.cat([cond.lowres, cond.lowres])], dim=1)
                    more["class_labels"] = torch.full((4,), 250)
                null = ours(config).embed.context.null.expand(2, -1, -1)
                out = network(pair, t, torch.cat([null, context.tokens]), **more).sample[:, :3]
                unguided, conditional = out.chunk(2)
                eps = unguided + scale * (conditional - unguided)
                x = scheduler.step(eps, t, x, use_clipped_model_output=True).prev_sample
                assert_close(states[index], x, rtol=0, atol=1e-3)
        assert_close(states[-1], x, rtol=0, atol=1e-4)
        assert float(x.std()) > 0.2 and len(states) == steps

    def scheduler(self, spacing: str, steps: int):
        diffusers = pytest.importorskip("diffusers")
        made = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing=spacing, clip_sample=True)
        made.set_timesteps(steps)
        return made


class TestWeights:
    def test_there_and_back(self, case):
        config = read_config(SMALL[case])
        whole = weights(config)
        back = to_ours(config, to_theirs(config, whole))
        assert back.keys() == whole.keys() - {"embed.context.null"}
        assert all(torch.equal(back[name], whole[name]) for name in back)

    def test_names_and_shapes_are_those_of_diffusers(self, case):
        self.compare(SMALL[case])

    @pytest.mark.parametrize("name", LARGE)
    def test_the_published_networks(self, name):
        config = self.compare(LARGE[name])
        with torch.device("meta"):
            network = DeepFloyd(config)
        assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(SIZES[name], rel=0.05)

    def compare(self, data: dict) -> DeepFloydConfig:
        diffusers = pytest.importorskip("diffusers")
        config = read_config(data)
        with torch.device("meta"):
            expected = diffusers.UNet2DConditionModel(**data).state_dict()
            own = DeepFloyd(config).state_dict()
        found = to_theirs(config, own)
        assert {name: w.shape for name, w in found.items()} == {name: w.shape for name, w in expected.items()}
        return config

    def test_every_tensor_goes_somewhere_once(self, case):
        config = read_config(SMALL[case])
        names = [name for mine, _ in pairs(config) for name in mine]
        assert len(names) == len(set(names)) and set(names) == weights(config).keys() - {"embed.context.null"}

    def test_the_variance_is_kept_but_learns_nothing(self):
        network = ours(read_config(ONE))
        assert {"variance.weight", "variance.bias"} <= network.state_dict().keys()
        assert not any("variance" in name for name, _ in network.named_parameters())
        assert network.head.out_channels == 3

    def test_what_does_not_fit_is_named(self):
        config = read_config(ONE)
        state = to_theirs(config, weights(config))
        less, more = dict(state), dict(state)
        less.pop("mid_block.attentions.0.to_q.weight")
        with pytest.raises(ValueError, match=r"lack 'mid_block.attentions.0.to_q.weight' \(1 names"):
            to_ours(config, less)
        more["extra.weight"] = torch.zeros(1)
        with pytest.raises(ValueError, match="hold 'extra.weight'"):
            to_ours(config, more)
        with pytest.raises(ValueError, match="guidance inside"):
            to_theirs(replace(config, guided=True), weights(config))


class TestConfigurations:
    @pytest.mark.parametrize("data", [*SMALL.values(), *LARGE.values()], ids=[*SMALL, *LARGE])
    def test_there_and_back(self, data):
        config = read_config(data)
        assert read_config(write_config(config, data["sample_size"])) == config
        assert from_json(to_json(config)) == config

    def test_are_read_by_diffusers(self, case):
        diffusers = pytest.importorskip("diffusers")
        data = SMALL[case]
        written = write_config(read_config(data), 16)
        with torch.device("meta"):
            mine, original = (diffusers.UNet2DConditionModel.from_config(each) for each in (written, data))
        same = {key: value for key, value in original.config.items() if mine.config[key] == value}
        assert original.config.keys() - same.keys() <= {
            "layers_per_block",
            "mid_block_scale_factor",
            "_use_default_values",
        }

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"act_fn": "silu"}, "act_fn is 'silu'; this is no U-Net of DeepFloyd IF, which has 'gelu'"),
            ({"addition_embed_type": None}, "addition_embed_type is None"),
            ({"norm_num_groups": 16}, "norm_num_groups is 16"),
            ({"down_block_types": ["DownBlock2D", "SimpleCrossAttnDownBlock2D"]}, "down_block_types is"),
            ({"up_block_types": ["SimpleCrossAttnUpBlock2D", "UpBlock2D"]}, "up_block_types is"),
            ({"resnet_skip_time_act": True}, "time_embedding_act_fn is None"),
            ({"mid_block_scale_factor": 2.0}, "mid_block_scale_factor is 2.0"),
            ({"class_embed_type": "projection"}, "class_embed_type is 'projection'"),
            ({"out_channels": 4}, "out_channels is 4"),
            ({"encoder_hid_dim": None}, "encoder_hid_dim is null"),
            ({"only_cross_attention": [True, False]}, "only_cross_attention is"),
        ],
    )
    def test_others_are_refused(self, changes, says):
        with pytest.raises(ValueError, match=says):
            read_config(ONE | changes)

    def test_impossible_ones_are_refused(self):
        config = read_config(ONE)
        for changes, says in (
            ({"blocks": (1,)}, "blocks is"),
            ({"attention": (True, False)}, "coarsest level attends"),
            ({"contexts": {"label": 3}}, "reads text alone"),
        ):
            with pytest.raises(ValueError, match=says):
                replace(config, **changes)
        with pytest.raises(ValueError, match="5 heads of pooling"), torch.device("meta"):
            DeepFloyd(replace(config, pool=5))


def run(*words) -> str:
    """What the command prints; its mistakes are raised."""
    done = CliRunner().invoke(application(), [str(word) for word in words], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.stdout


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """Prompts are remembered there."""
    monkeypatch.setenv("PIXELCASCADE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A folder in the layout of a pipeline of diffusers, with a tiny T5."""
    folder = tmp_path_factory.mktemp("IF")
    _, tokenizer = save_tiny("t5", folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    write_unet(folder, ONE)
    (folder / "scheduler").mkdir()
    scheduler = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon", "thresholding": True}
    scheduler |= {"dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.25, "num_train_timesteps": 1000}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def write_unet(folder, data: dict, name: str = "diffusion_pytorch_model.safetensors", dtype=torch.float32) -> dict:
    unet, config = folder / "unet", read_config(data)
    unet.mkdir(parents=True, exist_ok=True)
    state = {name: w.to(dtype).contiguous() for name, w in to_theirs(config, weights(config)).items()}
    (unet / "config.json").write_text(json.dumps(data))
    save_file(state, unet / name)
    return state


class TestFolders:
    def test_a_pipeline_becomes_a_stage_that_paints(self, pipeline, tmp_path):
        assert "base, 16x16 px with 3 channels" in run("convert", "deepfloyd", pipeline, tmp_path / "base")
        stage = open_stage(tmp_path / "base")
        assert stage.encoder.name == f"t5:{pipeline}?length=77&padded=1" and stage.name == "base"
        sampling = stage.sampling
        assert (sampling.threshold.quantile, sampling.threshold.most) == (0.9, 1.25)
        assert sampling.schedule == SCHEDULE and sampling.guidance.scale == 7.0 and sampling.aug_snr is None
        encoder = pc.encode.text.open_encoder(stage.encoder.name)
        null = stage.load().denoise.network.embed.context.null
        assert_close(null, encoder([""]).tokens[0], atol=1e-6, rtol=0)
        pictures = pc.open(tmp_path / "base").generate(["a red apple", "dog"], [3, 4], settings=settings("base"))
        assert [picture.size for picture in pictures] == [(16, 16)] * 2

    def test_and_goes_back_as_it_came(self, pipeline, tmp_path):
        run("convert", "deepfloyd", pipeline, tmp_path / "base")
        run("convert", tmp_path / "base", "--to", "diffusers")
        again = tmp_path / "base-diffusers"
        came, went = (load_file(each / "unet" / "diffusion_pytorch_model.safetensors") for each in (pipeline, again))
        assert came.keys() == went.keys() and all(torch.equal(came[name], went[name]) for name in came)
        run("convert", "deepfloyd", again, tmp_path / "twice", "--encoder", f"t5:{pipeline}")
        once, twice = (read_header(tmp_path / each / "model.safetensors") for each in ("base", "twice"))
        assert replace(once, trained={}) == replace(twice, trained={})

    def test_what_is_written_is_read_by_diffusers(self, pipeline, tmp_path):
        diffusers = pytest.importorskip("diffusers")
        run("convert", "deepfloyd", pipeline, tmp_path / "base")
        run("convert", tmp_path / "base", tmp_path / "out", "--to", "diffusers")
        with seeded(0):
            network = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet").eval()
        context = text()
        mine = open_stage(tmp_path / "base").load().denoise.network
        expected = paint_theirs(network, None, context.tokens)
        assert_close(paint(mine, context), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        scheduler = diffusers.DDPMScheduler.from_pretrained(tmp_path / "out" / "scheduler")
        assert scheduler.config.beta_schedule == "squaredcos_cap_v2" and scheduler.config.sample_max_value == 1.25

    def test_a_super_resolution_stage_fits_behind_its_base(self, pipeline, tmp_path):
        two = TWO | {"sample_size": 64}
        write_unet(tmp_path / "two", two)
        run("convert", "deepfloyd", pipeline, tmp_path / "base")
        told = run("convert", "deepfloyd", tmp_path / "two", tmp_path / "sr", "--encoder", f"t5:{pipeline}")
        assert told.startswith(f"{tmp_path / 'sr'}  sr64, 64x64 px")
        header = read_header(tmp_path / "sr" / "model.safetensors")
        assert header.recipe.objective.lowres.corners and header.recipe.sampling.threshold == Static()
        assert nearest_step(torch.tensor([header.recipe.sampling.aug_snr]).log()).tolist() == [250]
        run("assemble", tmp_path / "base", tmp_path / "sr", "-o", tmp_path / "model")
        cascade = pc.open(tmp_path / "model")
        (picture,) = cascade.generate(["a red apple"], [3], settings=settings("base") | settings("sr64"))
        assert picture.size == (64, 64)
        run("convert", tmp_path / "model" / "sr64", tmp_path / "out", "--to", "diffusers")
        assert (tmp_path / "out" / "image_noising_scheduler" / "scheduler_config.json").is_file()

    def test_variants_and_several_files(self, pipeline, tmp_path):
        state = write_unet(tmp_path, ONE, "diffusion_pytorch_model.fp16.safetensors", torch.float16)
        words = ["--encoder", f"t5:{pipeline}", "--name", "first"]
        run("convert", "deepfloyd", tmp_path, tmp_path / "half", *words)
        half = SavedStage(tmp_path / "half")
        assert half.name == "first" and half.weights()["stem.weight"].dtype == torch.float16
        names = sorted(state)
        parts = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
        for file, held in parts.items():
            save_file({name: state[name].float() for name in held}, tmp_path / "unet" / file)
        index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
        (tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
        run("convert", "deepfloyd", tmp_path / "unet", tmp_path / "whole", *words)
        run("convert", "deepfloyd", tmp_path / "unet", tmp_path / "asked", *words, "--variant", "fp16")
        whole, asked = (SavedStage(tmp_path / each).weights() for each in ("whole", "asked"))
        assert whole["stem.weight"].dtype == torch.float32 and asked["stem.weight"].dtype == torch.float16
        assert all(torch.equal(whole[name], asked[name].float()) for name in whole)

    def test_any_encoder_of_that_width_will_do(self, pipeline, tmp_path):
        run("convert", "deepfloyd", pipeline, tmp_path / "base", "--encoder", "hash:16?length=77")
        assert open_stage(tmp_path / "base").load().denoise.network.embed.context.null.shape == (77, 16)
        pictures = [pc.open(tmp_path / "base").generate([prompt], [3], settings=settings("base")) for prompt in "ab"]
        assert pictures[0][0].tobytes() != pictures[1][0].tobytes()

    def test_mistakes_are_one_line(self, pipeline, tmp_path):
        t5 = f"t5:{pipeline}"
        write_unet(tmp_path / "bare", ONE)
        write_unet(tmp_path / "pickled", ONE)
        (tmp_path / "pickled" / "unet" / "diffusion_pytorch_model.safetensors").rename(
            tmp_path / "pickled" / "unet" / "diffusion_pytorch_model.bin"
        )
        write_unet(tmp_path / "cut", ONE)
        cut = tmp_path / "cut" / "unet" / "diffusion_pytorch_model.safetensors"
        cut.write_bytes(cut.read_bytes()[:-100])
        write_unet(tmp_path / "other", ONE)
        (tmp_path / "other" / "unet" / "config.json").write_text(json.dumps(ONE | {"act_fn": "silu"}))
        write_unet(tmp_path / "linear", ONE)
        (tmp_path / "linear" / "scheduler").mkdir()
        (tmp_path / "linear" / "scheduler" / "scheduler_config.json").write_text('{"beta_schedule": "linear"}')
        out = tmp_path / "out"
        for words, says in (
            (["deepfloyd", tmp_path / "nothing", out], "there is no .*config.json; give the folder of a pipeline"),
            (["deepfloyd", tmp_path / "bare", out], "has no text_encoder; say which one with --encoder t5:FOLDER"),
            (
                ["deepfloyd", tmp_path / "bare", out, "--encoder", "hash:16"],
                "gives 128 tokens, but this network reads 77",
            ),
            (["deepfloyd", tmp_path / "bare", out, "--encoder", "hash:8?length=77"], "gives tokens 8 wide"),
            (
                ["deepfloyd", tmp_path / "pickled", out, "--encoder", t5],
                "only safetensors are read; it has .*model.bin",
            ),
            (["deepfloyd", tmp_path / "bare", out, "--variant", "fp16"], "there is no .*fp16.safetensors"),
            (["deepfloyd", tmp_path / "cut", out, "--encoder", t5], "is not a whole safetensors file"),
            (["deepfloyd", tmp_path / "other", out, "--encoder", t5], "act_fn is 'silu'"),
            (["deepfloyd", tmp_path / "linear", out, "--encoder", t5], "beta_schedule is 'linear'"),
            (["deepfloyd", pipeline], "write: pixelcascade convert deepfloyd FOLDER OUT"),
            (["deepfloyd", pipeline, pipeline], "is not empty; choose a new folder"),
            (["emoji", "--to", "difusers"], "--to is 'difusers'; did you mean 'diffusers'"),
        ):
            with pytest.raises(ValueError, match=says) as caught:
                run("convert", *words)
            assert "\n" not in str(caught.value) and not out.exists()
        base = pc.open("emoji").kept()[0].path
        with pytest.raises(ValueError, match="is a PatchTransformer; diffusers has a place for"):
            run("convert", base, out, "--to", "diffusers")


def settings(stage: str) -> dict:
    return {stage: pc.stage.Settings(steps=2)}


def test_in_bf16_it_is_nearly_the_same(pipeline, tmp_path):
    run("convert", "deepfloyd", pipeline, tmp_path / "base")
    context = text()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        half = open_stage(tmp_path / "base", precision="bf16").load().denoise.network
    whole = open_stage(tmp_path / "base").load().denoise.network
    x, level = normal(2, 2, 3, 16, 16), step(700, 40).logsnr
    with torch.no_grad():
        expected, found = (network(x, level, Conditioning({"text": context})) for network in (whole, half))
    assert 0 < float((found.float() - expected).abs().mean()) < 0.02 * float(expected.std())
