"""Prompts encoded before are not encoded again, and give the same picture."""

import os

import pytest
import small
import torch
from test_encode_text import save_tiny

from pixelcascade.cascade import Cascade, EncoderMark
from pixelcascade.checkpoint import Header, open_cascade, save_stage
from pixelcascade.encode import remember
from pixelcascade.encode.remember import Remembering
from pixelcascade.encode.text import CutWarning, open_encoder

NAME = "minilm?length=8"


@pytest.fixture(scope="module")
def plain():
    return open_encoder(NAME)


@pytest.fixture
def opened(monkeypatch, plain):
    """The prompts of every call of the encoder itself."""
    calls = []

    def counting(name, fingerprint):
        assert (name, fingerprint) == (NAME, plain.fingerprint)
        return Counted(plain, calls)

    monkeypatch.setattr(remember, "open_exactly", counting)
    return calls


class Counted:
    def __init__(self, encoder, calls):
        self.encoder, self.calls, self.length, self.dim = encoder, calls, encoder.length, encoder.dim
        self.name, self.fingerprint = encoder.name, encoder.fingerprint

    def __call__(self, prompts):
        self.calls.append(list(prompts))
        return self.encoder(prompts)


def test_only_new_prompts_are_encoded_and_nothing_changes(tmp_path, opened, plain):
    first = Remembering(NAME, plain.fingerprint, tmp_path)(["a red fox", "owl"])
    again = Remembering(NAME, plain.fingerprint, tmp_path)(["owl", "a  red fox", "two", "owl"])
    assert opened == [["a red fox", "owl"], ["two"]]
    assert torch.equal(again.tokens[1], first.tokens[0]) and torch.equal(again.mask[1], first.mask[0])
    whole = plain(["owl", "a red fox", "two", "owl"])
    assert torch.equal(again.mask, whole.mask)
    torch.testing.assert_close(again.tokens, whole.tokens, atol=1e-5, rtol=0)


def test_the_encoder_is_not_opened_for_known_ones(tmp_path, monkeypatch, plain):
    Remembering(NAME, plain.fingerprint, tmp_path)(["owl"])
    monkeypatch.setattr(remember, "open_exactly", lambda *given: pytest.fail("opened"))
    assert Remembering(NAME, plain.fingerprint, tmp_path)(["owl", "owl"]).tokens.shape[0] == 2


def test_a_prompt_that_is_cut_is_told_every_time(tmp_path, opened, plain):
    for _ in range(2):
        with pytest.warns(CutWarning):
            Remembering(NAME, plain.fingerprint, tmp_path)(["a fox with a very long tail and an even longer nose"])
    assert len(opened) == 2


def test_no_prompts(tmp_path, opened, plain):
    assert Remembering(NAME, plain.fingerprint, tmp_path)([]).tokens.shape[0] == 0


def test_a_damaged_file_is_replaced(tmp_path, opened, plain):
    encoder = Remembering(NAME, plain.fingerprint, tmp_path)
    whole = encoder(["owl"])
    (path,) = encoder.folder.iterdir()
    path.write_bytes(path.read_bytes()[:50])
    assert torch.equal(encoder(["owl"]).tokens, whole.tokens) and len(opened) == 2
    encoder(["owl"])
    assert len(opened) == 2


def test_a_folder_that_cannot_be_written_to_is_done_without(tmp_path, opened, plain):
    (tmp_path / "file").write_text("in the way")
    encoder = Remembering(NAME, plain.fingerprint, tmp_path / "file")
    assert encoder(["owl"]).mask.any() and encoder(["owl"]).mask.any()
    assert len(opened) == 2


def test_the_longest_unused_go_first(tmp_path, opened, plain, monkeypatch):
    encoder = Remembering(NAME, plain.fingerprint, tmp_path)
    for age, prompt in enumerate(["one", "two", "three"]):
        encoder([prompt])
        os.utime(encoder._path(prompt), (1000 + age, 1000 + age))
    encoder(["one"])  # used just now
    size = encoder._path("one").stat().st_size
    monkeypatch.setattr(remember, "MOST_BYTES", 2 * size + size // 2)
    encoder(["four"])
    assert encoder._path("one").exists() and encoder._path("four").exists()
    assert not encoder._path("two").exists() and not encoder._path("three").exists()


def test_a_whole_data_set_is_not_kept(tmp_path, opened, plain, monkeypatch):
    monkeypatch.setattr(remember, "MOST_PROMPTS", 2)
    encoder = Remembering(NAME, plain.fingerprint, tmp_path)
    encoder(["one", "two", "three"])
    assert not encoder.folder.exists()


def test_another_version_of_the_encoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"trained with encoder minilm.*\(0000.*install the version pinned"):
        Remembering(NAME, "0" * 64, tmp_path)(["owl"])


def test_cascades_remember(tmp_path, monkeypatch):
    monkeypatch.setenv("PIXELCASCADE_CACHE", str(tmp_path))
    stage = small.base()
    mark = EncoderMark(NAME, open_encoder(NAME).fingerprint)
    save_stage(tmp_path / "model.safetensors", Header(stage, mark, {}), stage.build().state_dict())
    cascade = open_cascade(tmp_path)
    assert isinstance(cascade, Cascade) and isinstance(cascade.encoder, Remembering)
    assert cascade.encoder.folder.is_relative_to(tmp_path)


def test_padding_that_counts_is_kept_too(tmp_path):
    save_tiny("t5", tmp_path / "t5")
    name = f"t5:{tmp_path / 't5'}?length=6&padded=1"
    plain = open_encoder(name)
    for _ in range(2):
        row = Remembering(name, plain.fingerprint, tmp_path)(["a red dog"])
        assert torch.equal(row.tokens, plain(["a red dog"]).tokens) and row.mask.all() and row.mask.shape == (1, 6)
        with pytest.warns(CutWarning):
            Remembering(name, plain.fingerprint, tmp_path)(["a red dog on the road"])
    assert len(list(Remembering(name, plain.fingerprint, tmp_path).folder.iterdir())) == 1
