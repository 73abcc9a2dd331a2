"""Text encoders: what a prompt becomes must not depend on its neighbours, its spacing or the machine."""

import hashlib
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from pixelcascade.encode.text import CutWarning, Hash, Pretrained, describe_cut, normalise, null_context, open_encoder

LONG = "a very long and winding road through the green hills of an island at dawn, with sheep, in a twemoji style"
GOLDEN = [-0.00267, -0.53279, 0.07533, 0.06648]  # the first token of "a red apple, fluent 3d style"
FINGERPRINT = "9ffdcde6be7fad1d"
HASHED = "d3f3530b8b2f1c48"
WORDS = ["a", "red", "apple", "green", "dog", "on", "the", "road", ",", "style"]


@pytest.fixture(scope="module")
def minilm() -> Pretrained:
    return open_encoder("minilm")


def sentence(encoder, prompt: str) -> torch.Tensor:
    tokens, mask = encoder([prompt])
    return tokens[0][mask[0]].mean(0)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.cosine_similarity(a, b, dim=0).item()


def assert_alone(encoder, prompts, atol: float = 1e-5) -> None:
    """Each prompt alone gives the same tokens as among the others; padding is zero."""
    together = encoder(prompts)
    assert together.tokens.dtype == torch.float32 and together.mask.dtype == torch.bool
    assert torch.equal(together.tokens[~together.mask], torch.zeros_like(together.tokens[~together.mask]))
    for prompt, tokens, mask in zip(prompts, *together, strict=True):
        alone = encoder([prompt])
        assert mask.sum() == alone.mask.sum()
        assert torch.equal(mask, torch.arange(len(mask)) < mask.sum())
        torch.testing.assert_close(tokens[mask], alone.tokens[0][alone.mask[0]], atol=atol, rtol=0)


# -- spelling ------------------------------------------------------------------------------------------------------


@given(st.text())
@settings(max_examples=50, deadline=None)
def test_normalise_settles(text):
    assert normalise(normalise(text)) == normalise(text)
    assert normalise(f" \t{text}\n") == normalise(text)


def test_normalise_composes_and_survives_surrogates():
    assert normalise("cafe\u0301  au\u00a0lait\n") == "caf\u00e9 au lait"
    assert normalise("\ud800x") == "?x"


# -- the null prompt -----------------------------------------------------------------------------------------------


def test_null_context_has_no_text_in_it():
    tokens, mask = null_context(5, batch=2)
    assert tokens.shape == (2, 1, 5) and mask.shape == (2, 1)
    assert not mask.any() and not tokens.any()


def test_null_context_is_what_dropping_leaves(minilm):
    dropped = minilm(["a red apple"]).drop(torch.tensor([True]))
    null = null_context(minilm.dim).pad(dropped.mask.shape[1])
    assert torch.equal(dropped.tokens, null.tokens) and torch.equal(dropped.mask, null.mask)


# -- minilm --------------------------------------------------------------------------------------------------------


def test_minilm_does_not_notice_its_neighbours(minilm):
    assert_alone(minilm, ["a red apple", LONG, "", "dog"])


def test_minilm_golden(minilm):
    tokens, mask = minilm(["a red apple, fluent 3d style"])
    assert tokens.shape == (1, 9, 384) and mask.all()
    torch.testing.assert_close(tokens[0, 0, :4], torch.tensor(GOLDEN), atol=1e-4, rtol=0)


def test_minilm_is_what_transformers_computes(minilm):
    transformers = pytest.importorskip("transformers")
    folder = minilm.files[0].parent
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    prompts = ["a red apple, fluent 3d style", "Caf\u00e9 \u82f9\u679c \U0001f600!", "", LONG]
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**batch).last_hidden_state
    tokens, mask = minilm(prompts)
    assert torch.equal(mask, batch["attention_mask"].bool())
    torch.testing.assert_close(tokens[mask], expected[mask], atol=1e-5, rtol=0)


def test_minilm_knows_what_words_mean(minilm):
    puppy, dog, car = (sentence(minilm, word) for word in ("a puppy", "a dog", "a car"))
    assert cosine(puppy, dog) > cosine(puppy, car) + 0.1


def test_minilm_does_not_notice_case_and_spacing(minilm):
    assert torch.equal(minilm(["A red\n apple "]).tokens, minilm(["a red apple"]).tokens)


def test_fingerprint_is_of_weights_tokenizer_and_length(minilm):
    assert minilm.fingerprint == open_encoder("minilm").fingerprint
    assert minilm.fingerprint != open_encoder("minilm?length=64").fingerprint
    assert minilm.fingerprint.startswith(FINGERPRINT)


def test_opening_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    open_encoder("minilm")(["dog"])
    assert torch.equal(before, torch.get_rng_state())


def test_opening_imports_little():
    code = (
        "import sys; from pixelcascade.encode.text import open_encoder; open_encoder('minilm')(['dog']);"
        "print([m for m in ('transformers', 'scipy', 'sklearn', 'torch._dynamo') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_frozen_until_asked(minilm):
    assert not minilm(["dog"]).tokens.requires_grad


def test_fine_tuning_through_a_loss_and_back(tmp_path):
    tuned = open_encoder("minilm").tune()
    before, fingerprint = tuned(["a red apple"]).tokens, tuned.fingerprint
    before.square().mean().backward()
    with torch.no_grad():
        for weight in tuned.module.parameters():
            weight -= 0.1 * weight.grad
    after = tuned(["a red apple"]).tokens.detach()
    assert (after - before).abs().max() > 1e-3
    assert tuned.fingerprint != fingerprint != open_encoder("minilm").fingerprint
    tuned.save(tmp_path)
    saved = open_encoder(f"hf:{tmp_path}")
    torch.testing.assert_close(saved(["a red apple"]).tokens, after, atol=1e-5, rtol=0)
    assert saved.fingerprint not in (fingerprint, tuned.fingerprint, open_encoder("minilm").fingerprint)


# -- prompts that are too long ---------------------------------------------------------------------------------------


def test_cut_names_the_first_words_lost():
    encoder = open_encoder("minilm?length=8")
    with pytest.warns(
        CutWarning, match="'one two three.*has 10 tokens, the text encoder takes 8.*before 'seven eight'"
    ):
        tokens, mask = encoder(["one two three four five six seven eight"])
    assert mask.sum() == 8
    whole = open_encoder("minilm")(["one two three four five six"])
    torch.testing.assert_close(tokens, whole.tokens, atol=1e-5, rtol=0)  # [SEP] is kept


def test_a_prompt_that_just_fits_is_not_cut():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_encoder("minilm?length=8")(["one two three four five six"])


def test_minilm_cuts_at_its_own_length_not_at_its_tokenizers():
    """The package's tokenizer.json cuts at 128 by itself, without a word."""
    assert open_encoder("minilm?length=200")(["dog " * 150]).mask.sum() == 152
    with pytest.warns(CutWarning, match="has 152 tokens, the text encoder takes 128"):
        assert open_encoder("minilm")(["dog " * 150]).mask.sum() == 128


def test_threads_may_share_an_encoder(minilm):
    prompts = [["dog", f"a much longer prompt, number {i}"] for i in range(6)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(minilm, prompts))
    for prompt, context in zip(prompts, together, strict=True):
        torch.testing.assert_close(context.tokens, minilm(prompt).tokens, atol=1e-5, rtol=0)


def test_describe_cut_shortens():
    text = describe_cut("w " * 100, 100, 77, "v " * 100)
    assert len(text) < 200 and "100 tokens" in text and "77" in text


# -- hash ----------------------------------------------------------------------------------------------------------


def test_hash_does_not_notice_its_neighbours():
    assert_alone(open_encoder("hash"), ["a red apple, noto style", "", LONG, "dog"], atol=0)


def test_hash_is_the_same_on_any_machine():
    tokens = open_encoder("hash:128")(["a red apple, noto style"]).tokens
    assert tokens.shape == (1, 6, 128)
    digest = hashlib.sha256((tokens * 1000).round().int().numpy().astype("<i4").tobytes()).hexdigest()
    assert digest.startswith(HASHED)


def test_hash_has_unit_variance_and_sees_spelling():
    tokens = open_encoder("hash:4096")(["apple apples dog"]).tokens[0]
    assert tokens.var(1).sub(1).abs().max() < 0.1 and tokens.mean(1).abs().max() < 0.1
    apple, apples, dog = tokens
    assert cosine(apple, apples) > 0.2 > abs(cosine(apple, dog)) + 0.1


def test_hash_cuts():
    with pytest.warns(CutWarning, match="has 5 tokens, the text encoder takes 3.*before 'four five'"):
        assert open_encoder("hash?length=3")(["one two three four five"]).mask.sum() == 3


def test_hash_fingerprint():
    assert open_encoder("hash").fingerprint == Hash("x", 64, 128).fingerprint != open_encoder("hash:32").fingerprint


@pytest.mark.parametrize("name", ["hash", "minilm"])
def test_no_prompts_and_a_bare_prompt(name):
    encoder = open_encoder(name)
    assert encoder([]).tokens.shape[::2] == (0, encoder.dim)
    with pytest.raises(ValueError, match="pass a list"):
        encoder("a red apple")


# -- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("minlm", "did you mean 'minilm'"),
        ("all-MiniLM-L6-v2", "did you mean 'minilm'"),
        ("google/flan-t5-xl", "did you mean 't5:google/flan-t5-xl'"),
        ("openai/clip-vit-base-patch32", "did you mean 'clip:openai"),
        ("EleutherAI/pythia-70m", "did you mean 'hf:EleutherAI"),
        ("word2vec", "there is no text encoder 'word2vec'; known: minilm"),
        ("t5", "write t5:FOLDER"),
        ("t5:", "write t5:FOLDER"),
        ("minilm:large", "write hf:large"),
        ("hash:wide", "not a width"),
        ("hash?layer=2", "has no option 'layer', only length"),
        ("minilm?length=lots", "length=lots is not a whole number"),
        ("minilm?length=", "not a whole number"),
        ("minilm?length=1000", "takes 3 to 512 tokens"),
        ("minilm?length=2", "takes 3 to 512 tokens"),
        ("t5:/x?dtype=float16", "float16 overflows"),
        ("t5:/no/such/folder", "no folder /no/such/folder"),
    ],
)
def test_misspelt_names(name, says):
    with pytest.raises(ValueError) as caught:
        open_encoder(name)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_opened_offline_says_what_to_pass(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"pass a folder with config.json.*t5:FOLDER") as caught:
        open_encoder("t5:nobody/no-such-model")
    assert "\n" not in str(caught.value)


# -- Hugging Face ----------------------------------------------------------------------------------------------------


def tiny_tokenizer(opening: str | None, closing: str | None, pad: bool = True):
    """Whole words; special tokens where given."""
    from transformers import PreTrainedTokenizerFast

    special = [token for token in ("[PAD]", "[UNK]", opening, closing) if token]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    around = " ".join(part for part in (opening, "$A", closing) if part)
    named = [(token, vocabulary[token]) for token in (opening, closing) if token]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=named)
    padding = {"pad_token": "[PAD]"} if pad else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **padding)


def save_tiny(kind: str, folder, **changes):
    """A random network of that kind with its tokenizer; what was saved."""
    import transformers as t

    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
        if kind == "t5":
            network = t.T5Model(
                t.T5Config(vocab_size=16, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2, **changes)
            )
            tokenizer = tiny_tokenizer(None, "</s>")
        elif kind == "clip":
            text = small | {
                "intermediate_size": 32,
                "max_position_embeddings": 77,
                "eos_token_id": 3,
                "bos_token_id": 2,
            }
            vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
            vision |= {"image_size": 8, "patch_size": 4}
            network = t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
            tokenizer = tiny_tokenizer("<|startoftext|>", "<|endoftext|>")
        elif kind == "bert":
            network = t.BertModel(t.BertConfig(intermediate_size=32, max_position_embeddings=40, **small))
            tokenizer = tiny_tokenizer("[CLS]", "[SEP]")
        else:
            network = t.GPT2LMHeadModel(t.GPT2Config(vocab_size=16, n_embd=16, n_layer=3, n_head=2, n_positions=64))
            tokenizer = tiny_tokenizer(None, None, pad=False)
    network.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return network, tokenizer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folder, network and tokenizer of each kind."""
    made = {}
    for kind in ("t5", "clip", "bert", "gpt2"):
        folder = tmp_path_factory.mktemp(kind)
        made[kind] = (folder, *save_tiny(kind, folder))
    return made


TINY = [("t5", "t5", 128), ("clip", "clip", 77), ("hf", "bert", 40), ("hf", "gpt2", 64), ("hf", "t5", 128)]


@pytest.mark.parametrize(("kind", "network", "length"), TINY)
def test_huggingface_encoders(tiny, kind, network, length):
    encoder = open_encoder(f"{kind}:{tiny[network][0]}")
    assert (encoder.dim, encoder.length) == (16, length)
    assert_alone(encoder, ["a red apple", "a green dog on the road , a red apple on the road", "", "dog"])
    assert encoder.fingerprint == open_encoder(f"{kind}:{tiny[network][0]}").fingerprint
    assert not encoder(["dog"]).tokens.requires_grad


def test_fingerprints_differ(tiny):
    names = [f"{kind}:{tiny[network][0]}" for kind, network, _ in TINY[:4]]
    names += [names[0] + "?length=64", names[0] + "?layer=-2"]
    prints = [open_encoder(name).fingerprint for name in names]
    assert len(set(prints)) == len(prints)
    assert open_encoder(names[0] + "?dtype=bfloat16").fingerprint == prints[0]


def test_t5_keeps_its_closing_token(tiny):
    folder, network, tokenizer = tiny["t5"]
    ids = tokenizer(["a red apple"], return_tensors="pt").input_ids
    assert tokenizer.convert_ids_to_tokens(ids[0])[-1] == "</s>"
    with torch.no_grad():
        expected = network.encoder(input_ids=ids).last_hidden_state
    torch.testing.assert_close(open_encoder(f"t5:{folder}")(["a red apple"]).tokens, expected, atol=1e-5, rtol=0)
    with pytest.warns(CutWarning, match="before 'dog on'"):
        assert open_encoder(f"t5:{folder}?length=4").ids(["a red green dog on"])[0][-1] == ids[0, -1]


def test_t5_in_bfloat16_gives_float32(tiny):
    whole = open_encoder(f"t5:{tiny['t5'][0]}")(["a red apple"]).tokens
    half = open_encoder(f"t5:{tiny['t5'][0]}?dtype=bfloat16")(["a red apple"]).tokens
    assert half.dtype == torch.float32
    assert 0 < (half - whole).abs().max() < 0.1


def test_clip_takes_the_penultimate_layer_by_default(tiny):
    folder, network, tokenizer = tiny["clip"]
    ids = tokenizer(["a red apple"], return_tensors="pt").input_ids
    with torch.no_grad():
        out = network.text_model(input_ids=ids, output_hidden_states=True)
    text = open_encoder(f"clip:{folder}")(["a red apple"]).tokens
    last = open_encoder(f"clip:{folder}?layer=-1")(["a red apple"]).tokens
    torch.testing.assert_close(text, out.hidden_states[-2], atol=1e-5, rtol=0)
    torch.testing.assert_close(last, out.last_hidden_state, atol=1e-5, rtol=0)


def test_clip_and_gpt2_are_causal(tiny):
    for name in (f"clip:{tiny['clip'][0]}", f"hf:{tiny['gpt2'][0]}"):
        short, long = open_encoder(name)(["a red apple", "a red dog"]).tokens
        torch.testing.assert_close(short[:2], long[:2], atol=1e-6, rtol=0)
        assert (short[-2:] - long[-2:]).abs().max() > 1e-3


def test_gpt2_without_padding_token_encodes_nothing_as_null(tiny):
    tokens, mask = open_encoder(f"hf:{tiny['gpt2'][0]}")([""])
    null = null_context(16)
    assert torch.equal(tokens, null.tokens) and torch.equal(mask, null.mask)


def test_padded_prompts_are_as_long_as_the_encoder_and_all_real(tiny):
    """What DeepFloyd IF reads: T5's states of the padding as well, which the padding itself has no part in."""
    folder, network, _ = tiny["t5"]
    encoder = open_encoder(f"t5:{folder}?length=9&padded=1")
    tokens, mask = encoder(["a red apple", "dog"])
    assert tokens.shape == (2, 9, 16) and mask.all()
    ids = torch.tensor([[*encoder.ids(["dog"])[0], *7 * [0]]])
    with torch.no_grad():
        expected = network.encoder(input_ids=ids, attention_mask=(torch.arange(9) < 2)[None].long()).last_hidden_state
    torch.testing.assert_close(tokens[1:], expected, atol=1e-5, rtol=0)
    assert tokens[1, 5:].abs().min() > 0
    torch.testing.assert_close(encoder(["dog"]).tokens, tokens[1:], atol=1e-5, rtol=0)
    plain = open_encoder(f"t5:{folder}?length=9")
    torch.testing.assert_close(plain(["dog"]).tokens, tokens[1:, :2], atol=1e-5, rtol=0)
    assert plain.fingerprint != encoder.fingerprint


def test_a_pipeline_of_diffusers_is_a_folder_of_an_encoder(tiny, tmp_path):
    folder, network, tokenizer = tiny["t5"]
    network.save_pretrained(tmp_path / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for path in (tmp_path / "text_encoder").glob("*.safetensors"):
        path.rename(path.with_name("model.fp16.safetensors"))
    encoder = open_encoder(f"t5:{tmp_path}")
    assert torch.equal(encoder(["a dog"]).tokens, open_encoder(f"t5:{folder}")(["a dog"]).tokens)
    assert {path.name for path in encoder.files} >= {"config.json", "model.fp16.safetensors", "tokenizer.json"}


@pytest.mark.parametrize("layer", [0, 1, -5])
def test_layers_that_are_not_there(tiny, layer):
    with pytest.raises(ValueError, match=f"layer={layer}, but this network has layers -4"):
        open_encoder(f"t5:{tiny['t5'][0]}?layer={layer}")


def test_the_wrong_family_is_refused(tiny):
    with pytest.raises(ValueError, match="is a bert model; open it as 'hf:"):
        open_encoder(f"t5:{tiny['bert'][0]}")


def test_pickled_weights_are_refused(tiny, tmp_path):
    _, network, tokenizer = tiny["bert"]
    network.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"has no .*safetensors"):
        open_encoder(f"hf:{tmp_path}")


def test_missing_weights_are_refused(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    folder, network, tokenizer = tiny["bert"]
    network.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lacks 1 weights of the encoder, first 'encoder.layer.1.output.dense.weight'"
    ):
        open_encoder(f"hf:{tmp_path}")


def test_a_damaged_or_lacking_file_is_one_line(tiny, tmp_path):
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        folder = tmp_path / name
        save_tiny("bert", folder)
        whole = (folder / name).read_bytes()
        for data in (whole[: len(whole) // 2], None):
            (folder / name).unlink() if data is None else (folder / name).write_bytes(data)
            with pytest.raises(ValueError) as caught:
                open_encoder(f"hf:{folder}")
            assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_written_in_python(tmp_path):
    from transformers import ByT5Tokenizer, T5Config, T5Model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = T5Model(T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2))
    network.save_pretrained(tmp_path)
    ByT5Tokenizer().save_pretrained(tmp_path)
    encoder = open_encoder(f"t5:{tmp_path}?length=12")
    assert_alone(encoder, ["a red", "red apple", ""])
    with pytest.warns(CutWarning, match="has 17 tokens.*before 'road'"):
        assert encoder(["a green red road"]).mask.sum() == 12


def test_save_keeps_a_fine_tuned_huggingface_encoder(tiny, tmp_path):
    encoder = open_encoder(f"clip:{tiny['clip'][0]}")
    with torch.no_grad():
        next(encoder.module.parameters()).add_(1)
    encoder.save(tmp_path)
    saved = open_encoder(f"clip:{tmp_path}")
    assert torch.equal(saved(["a dog"]).tokens, encoder(["a dog"]).tokens)
    assert saved.fingerprint != encoder.fingerprint
