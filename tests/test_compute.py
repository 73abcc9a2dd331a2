"""Networks in other numbers, compiled, and read while the stage before them works."""

import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import small
import torch
from parts import normal, seeded
from typer.testing import CliRunner

import pixelcascade as pc
from pixelcascade.cascade import Cascade
from pixelcascade.checkpoint import SavedStage
from pixelcascade.cli import application
from pixelcascade.condition import Conditioning, Context
from pixelcascade.metadata import read_provenance
from pixelcascade.precision import DTYPES, Compute, bf16_is_faster
from pixelcascade.recipes.emoji import emoji
from pixelcascade.stage import Draft, run


@pytest.fixture(params=["bf16", "fp16"])
def precision(request):
    return request.param


def draft():
    return Draft({"text": Context(normal(1, 2, 3, 64), torch.ones(2, 3, dtype=torch.bool))}, (0, 1))


class TestPrecision:
    def test_weights_are_half_the_size_and_pictures_nearly_the_same(self, tmp_path, precision):
        small.random_cascade(tmp_path).save(tmp_path / "model")
        whole, half = (pc.open(tmp_path / "model", precision=each) for each in ("float32", precision))
        network = half.kept()[0].load().denoise.network
        assert all(weight.element_size() == (2 if weight.ndim > 1 else 4) for weight in network.parameters())
        ours, theirs = (run(each, draft()).painted for each in (half, whole))
        assert ours.dtype == torch.float32
        difference = float((ours - theirs).abs().mean())
        assert 0 < difference < 0.02

    def test_a_picture_says_it_and_is_painted_again_in_it(self, tmp_path, precision):
        small.random_cascade(tmp_path).save(tmp_path / "model")
        command = ["generate", "fox", "--model", str(tmp_path / "model"), "-o", str(tmp_path / "a.png")]
        done = CliRunner().invoke(application(), [*command, "--precision", precision, "--device", "cpu"])
        assert done.exit_code == 0, done.exception
        assert read_provenance(tmp_path / "a.png").precision == precision
        again = ["reproduce", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), "--device", "cpu"]
        assert "identical" in CliRunner().invoke(application(), again).stdout

    def test_auto_is_what_the_device_has(self, monkeypatch):
        monkeypatch.setattr("pixelcascade.precision.bf16_is_faster", lambda device: device == "cuda")
        assert [Compute(device, "auto").numbers for device in ("cpu", "cuda")] == ["float32", "bf16"]

    def test_refuses(self):
        with pytest.raises(ValueError, match="precision is 'fp8'; it is one of float32, bf16"):
            pc.open("emoji", precision="fp8")


class TestWidening:
    """Where a CPU is slower in these numbers, or has none of them, it keeps them and computes in float32."""

    @pytest.fixture
    def slow(self, monkeypatch):
        monkeypatch.setattr("pixelcascade.precision.bf16_is_faster", lambda device: False)

    def test_computes_in_float32_from_narrow_weights(self, tmp_path, slow, precision):
        small.random_cascade(tmp_path).save(tmp_path / "model")
        whole, half = (pc.open(tmp_path / "model", precision=each).kept()[0].load() for each in ("float32", precision))
        narrowed = half.denoise.network
        assert narrowed.wide
        exact = whole.denoise.network
        for weight in exact.parameters():
            if weight.ndim > 1:
                weight.data = weight.data.to(DTYPES[precision]).float()
        inputs = normal(1, 2, 3, 8, 8), torch.zeros(2), Conditioning(draft().contexts)
        assert torch.equal(narrowed(*inputs), exact(*inputs))

    def test_fast_numbers_are_computed_in(self, monkeypatch):
        monkeypatch.setattr("pixelcascade.precision.bf16_is_faster", lambda device: True)
        with seeded(0):
            network = torch.nn.Conv2d(3, 3, 1)
        assert not Compute(precision="bf16")(network).wide and type(network) is torch.nn.Conv2d
        assert Compute(precision="fp16")(network).wide and type(network) is not torch.nn.Conv2d

    @pytest.mark.parametrize(
        ("native", "amx", "name", "faster"),
        [
            (True, False, "Intel Xeon", False),
            (True, True, "Intel Xeon", True),
            (True, False, "AMD EPYC 9B14", True),
            (False, False, "AMD EPYC 7B13", False),
        ],
    )
    def test_which_processors_are_faster_in_bf16(self, monkeypatch, native, amx, name, faster):
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: native)
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"cpu_name": name})
        assert bf16_is_faster("cpu") == faster


def test_kernels_lie_as_maps_do(tmp_path):
    network = small.random_cascade(tmp_path).kept()[0].load().denoise.network
    kernels = [weight for weight in network.parameters() if weight.ndim == 4]
    assert kernels and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)


class TestReadingAhead:
    def test_the_next_stage_is_read_while_one_works(self, tmp_path, monkeypatch):
        cascade = small.random_cascade(tmp_path)
        base, larger = cascade.kept()
        done = threading.Event()
        load = SavedStage.load

        def loading(stage):
            loaded = load(stage)
            if stage is larger:
                assert threading.current_thread() is not threading.main_thread() or done.is_set()
                done.set()
            return loaded

        def waiting(*given):
            assert done.wait(20), "the next stage was not read meanwhile"
            return denoise(*given)

        denoise = base.load().denoise
        base._stage = replace(base.load(), denoise=waiting)
        monkeypatch.setattr(SavedStage, "load", loading)
        assert run(cascade, draft()).painted.shape[-1] == 16

    def test_a_damaged_one_is_told_in_its_turn(self, tmp_path):
        cascade = small.random_cascade(tmp_path)
        path = cascade.kept()[1].path
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(Exception, match=r"[Ii]ncomplete|truncated|buffer"):
            run(cascade, draft())

    def test_two_threads_read_it_once(self, tmp_path, monkeypatch):
        stage = small.random_cascade(tmp_path).kept()[0]
        found = []
        threads = [threading.Thread(target=lambda: found.append(stage.load())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({id(each) for each in found}) == 1


def test_opening_a_model_imports_no_compiler(tmp_path):
    """It takes longer than a picture."""
    Cascade([pc.open_stage(small.save_random(stage, tmp_path)) for stage in emoji().stages]).save(tmp_path / "model")
    code = (
        "import sys, pixelcascade as pc\n"
        "[stage.load() for stage in pc.open(sys.argv[1]).kept()]\n"
        "print(sorted({'torch._dynamo', 'sympy', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_compiled_is_the_same_picture(tmp_path, monkeypatch):
    """With the compiler's front alone, which is quick; tests/slow/test_compile.py has all of it."""
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda network: asked.append(type(network).__name__))
    small.random_cascade(tmp_path).save(tmp_path / "model")
    plain, compiled = (pc.open(tmp_path / "model", compiled=each) for each in (False, True))
    assert torch.equal(run(compiled, draft()).painted, run(plain, draft()).painted)
    assert len(asked) == 2 and isinstance(compiled, Cascade)
    (picture,) = compiled.generate(["fox"], [3])
    assert np.array_equal(np.asarray(picture), np.asarray(plain.generate(["fox"], [3])[0]))
