"""Text encoders from Hugging Face folders: T5, CLIP, and any encoder or decoder language model.

Only safetensors weights are read and no code that comes with a model is run. Everything is loaded from a folder; a hub
name is first downloaded into one, without the files that we would refuse. The folder may be a pipeline's of diffusers,
with text_encoder/ and tokenizer/ in it.
"""

import importlib.util
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import snapshot_download
from jaxtyping import Bool, Float, Int
from torch import Tensor, float32, nn
from torch.random import fork_rng

from pixelcascade.encode.text import (
    LENGTH,
    Name,
    Pretrained,
    Tokenize,
    Tokens,
    check_length,
    count_closing,
    fast_tokenize,
)

VOCABULARY = ["tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt"]
TOKENIZER = [*VOCABULARY, "merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"]
T5 = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
CLIP = {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel"}
FAMILIES = {"t5": T5, "clip": CLIP}  # by kind of name: the network's class by the model_type of config.json


class States(nn.Module):
    """One layer's hidden states of a Hugging Face network."""

    def __init__(self, network: Any, layer: int):
        super().__init__()
        self.network = network
        self.layer = layer

    def forward(self, ids: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        out = self.network(input_ids=ids, attention_mask=mask.long(), output_hidden_states=self.layer != -1)
        return out.last_hidden_state if self.layer == -1 else out.hidden_states[self.layer]

    def save(self, folder: Path) -> None:
        self.network.save_pretrained(folder)


def open_huggingface(name: Name) -> Pretrained:
    """ValueError: nothing there, not of the kind that the name says, no safetensors weights, weights missing."""
    folder = find_folder(name)
    vocabulary = folder
    if (folder / "text_encoder").is_dir():
        folder, vocabulary = folder / "text_encoder", folder / "tokenizer"
    config = load(name, folder, transformers.AutoConfig)
    layer = check_layer(name, config)
    tokenizer = open_tokenizer(name, vocabulary)
    weights, variant = find_weights(name, folder)
    network = open_network(name, folder, config, variant)
    text = network.config.get_text_config()
    return Pretrained(
        name=name.text,
        dim=text.hidden_size,
        length=check_length(name, 77 if name.kind == "clip" else LENGTH, most_tokens(text, tokenizer)),
        layer=layer,
        padding=first_known(tokenizer.pad_token_id, text.pad_token_id, 0),
        tokenize=fast_tokenize(tokenizer.backend_tokenizer) if tokenizer.is_fast else slow_tokenize(tokenizer),
        module=States(network, layer),
        files=tuple(sorted([folder / "config.json", *weights, *present(vocabulary, TOKENIZER)])),
        padded=bool(name.padded),
    )


def load(name: Name, folder: Path, what: Any, **options: Any) -> Any:
    """What a class of transformers reads in a folder. ValueError, in one line, for whatever it raises: that is much."""
    try:
        with quiet(), fork_rng(devices=[]):  # weights that the files lack are drawn, see refuse_missing
            return what.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:
        raise ValueError(f"{name.text!r}: {folder} does not open as a text encoder: {first_line(error)}") from error


def find_folder(name: Name) -> Path:
    """The folder that a source names, or what the hub (or its cache on this machine) has under that name."""
    folder = Path(name.source).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or name.source.startswith((".", "~")) or name.source.count("/") > 1:
        raise ValueError(f"{name.text!r}: there is no folder {folder}")
    try:
        wanted = ["*.safetensors", "*.safetensors.index.json", "config.json", *TOKENIZER]
        return Path(snapshot_download(name.source, allow_patterns=wanted, ignore_patterns="*/*"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name.text!r}: no folder of that name, and the hub does not give it ({first_line(error)}); pass a folder "
            f"with config.json, the tokenizer and *.safetensors: {name.kind}:FOLDER"
        ) from error


def find_weights(name: Name, folder: Path) -> tuple[list[Path], str | None]:
    """The weights' files, and their variant: "fp16" where the folder has them in half precision alone."""
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise ValueError(
            f"{name.text!r}: {folder} has no *.safetensors; other formats can run code when they are opened and "
            f"are not read: convert the weights where you trust them, with save_pretrained of transformers"
        )
    whole = [path for path in found if ".fp16" not in path.name]
    return (whole, None) if whole else (found, "fp16")


def open_network(name: Name, folder: Path, config: Any, variant: str | None) -> Any:
    kind = FAMILIES.get(name.kind, T5 | CLIP)
    if config.model_type not in kind and name.kind in FAMILIES:
        raise ValueError(f"{name.text!r}: {folder} is a {config.model_type} model; open it as 'hf:{name.source}'")
    network_class = getattr(transformers, kind.get(config.model_type, "AutoModel"))
    options = {"dtype": name.dtype or float32, "use_safetensors": True, "output_loading_info": True, "variant": variant}
    network, report = load(name, folder, network_class, **options)
    refuse_missing(name, folder, report["missing_keys"])
    if network.config.is_encoder_decoder and config.model_type not in T5:
        network = network.get_encoder()
    network.config.use_cache = False  # a decoder would keep keys and values for a next token that never comes
    return network


def refuse_missing(name: Name, folder: Path, missing: Collection[str]) -> None:
    """transformers draws at random what the files lack; only a pooler may be lacking, since no token passes it."""
    lacking = sorted(key for key in missing if "pooler" not in key)
    if lacking:
        raise ValueError(f"{name.text!r}: {folder} lacks {len(lacking)} weights of the encoder, first {lacking[0]!r}")


def open_tokenizer(name: Name, folder: Path) -> Any:
    found = [path.name for path in present(folder, VOCABULARY)]
    if found and all(file.endswith(".model") for file in found) and not can_read_sentencepiece():
        raise ValueError(f"{name.text!r}: reading {folder / found[0]} needs: pip install sentencepiece protobuf")
    tokenizer = load(name, folder, transformers.AutoTokenizer)
    if tokenizer.is_fast and not found:
        raise ValueError(f"{name.text!r}: {folder} has no vocabulary; add the model's {' or '.join(VOCABULARY[:3])}")
    return tokenizer


def can_read_sentencepiece() -> bool:
    return all(module_available(module) for module in ("sentencepiece", "google.protobuf"))


def module_available(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is not there
        return False


def slow_tokenize(tokenizer: Any) -> Tokenize:
    """With a tokenizer written in Python (ByT5). It does not say where tokens begin: equal shares are assumed."""

    def tokenize(prompts: Sequence[str]) -> list[Tokens]:
        return [tokens_of(prompt, tokenizer(prompt, verbose=False)["input_ids"]) for prompt in prompts]

    def tokens_of(prompt: str, ids: list[int]) -> Tokens:
        special = set(tokenizer.all_special_ids)
        closing = count_closing([i in special for i in ids])
        each = len(prompt) / max(1, len(ids) - closing)
        return Tokens(ids, [round(i * each) for i in range(len(ids))], closing)

    return tokenize


def check_layer(name: Name, config: Any) -> int:
    """The layer asked for. CLIP's penultimate by default: its last was trained for one pooled vector."""
    layers = config.get_text_config().num_hidden_layers
    layer = first_known(name.layer, -2 if name.kind == "clip" else -1)
    if not -layers - 1 <= layer <= -1:
        raise ValueError(f"{name.text!r}: layer={layer}, but this network has layers -{layers + 1} (embeddings) to -1")
    return layer


def most_tokens(config: Any, tokenizer: Any) -> int:
    """How many positions there are; a network with relative positions (T5) takes any number."""
    positions = getattr(config, "max_position_embeddings", None)
    return sys.maxsize if positions is None else min(positions, tokenizer.model_max_length)


def first_known(*values: int | None) -> int:
    return next(value for value in values if value is not None)


def present(folder: Path, names: Sequence[str]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars and its report of weights that we leave out on purpose (a decoder, a vision tower)."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
