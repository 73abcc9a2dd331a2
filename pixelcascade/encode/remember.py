"""Prompts that were encoded before are kept on disk: painting them again does not open the encoder.

A file a prompt, in the user's cache, named by a digest of the prompt under the encoder's fingerprint, in float32: the
picture is the same, bit for bit, whether its prompt was remembered or not. The files say no prompt in words.
"""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from pixelcascade.condition import Context, cat_contexts
from pixelcascade.encode.cache import key_of
from pixelcascade.encode.text import Pretrained, TextEncoder, check_prompts, open_encoder, parse_name
from pixelcascade.files import cache_folder, write_atomically

MOST_PROMPTS = 64  # in one call; more are a data set's, for which there is `embed`
MOST_BYTES = 2**28  # of one encoder's prompts; the longest unused go first


class Remembering:
    """A text encoder by its name and fingerprint that looks into `folder` first, and is opened for new prompts only.

    folder: None is the user's cache; one that cannot be written to is done without. ValueError, when it is opened: it
    is not the encoder of that fingerprint.
    """

    def __init__(self, name: str, fingerprint: str, folder: Path | None = None):
        self.name, self.fingerprint = name, fingerprint
        self.folder = (folder or cache_folder() / "prompts") / fingerprint[:16]

    @cached_property
    def opened(self) -> TextEncoder:
        return open_exactly(self.name, self.fingerprint)

    @property
    def dim(self) -> int:
        return self.opened.dim

    @property
    def length(self) -> int:
        return self.opened.length

    def __call__(self, prompts: Sequence[str]) -> Context:
        prompts = check_prompts(prompts)
        rows = {prompt: self._recall(prompt) for prompt in prompts}
        new = [prompt for prompt, row in rows.items() if row is None]
        if new or not prompts:
            encoded = self.opened(new)
            for index, prompt in enumerate(new):
                row = encoded.take([index])
                rows[prompt] = self._remember(prompt, row) if len(new) <= MOST_PROMPTS else row
        return cat_contexts([row for prompt in prompts if (row := rows[prompt])]) if prompts else encoded

    def _recall(self, prompt: str) -> Context | None:
        path = self._path(prompt)
        try:
            tokens = load_file(path)["tokens"]
            os.utime(path)
        except (OSError, SafetensorError, KeyError):
            return None
        return Context(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))

    def _remember(self, prompt: str, row: Context) -> Context:
        """The row without its padding. One that fills the encoder is not kept: that it was cut is to be told again."""
        count = int(row.mask.sum())
        if not count or self._fills(prompt, count):
            return row
        row = Context(row.tokens[:, :count].cpu(), row.mask[:, :count].cpu())
        try:
            write_atomically(self._path(prompt), save({"tokens": row.tokens.contiguous()}))
            self._prune()
        except OSError:
            pass  # a full or read-only disk is no reason not to paint
        return row

    def _fills(self, prompt: str, count: int) -> bool:
        """Whether a prompt of so many tokens takes all that the encoder has: padding, where it counts, aside."""
        if parse_name(self.name).padded:
            assert isinstance(self.opened, Pretrained)
            count = len(self.opened.tokenize([prompt])[0].ids)
        return count >= self.length

    def _prune(self) -> None:
        files = [(path.stat().st_mtime, path.stat().st_size, path) for path in self.folder.glob("*.safetensors")]
        surplus = sum(size for _, size, _ in files) - MOST_BYTES
        for _, size, path in sorted(files):
            if surplus <= 0:
                break
            path.unlink(missing_ok=True)
            surplus -= size

    def _path(self, prompt: str) -> Path:
        return self.folder / f"{key_of(prompt).hex()}.safetensors"


def open_exactly(name: str, fingerprint: str) -> TextEncoder:
    """The encoder of that name. ValueError unless it has that fingerprint."""
    encoder = open_encoder(name)
    if encoder.fingerprint != fingerprint:
        raise ValueError(
            f"the model was trained with encoder {name} ({fingerprint[:12]}), but {name} is installed as "
            f"{encoder.fingerprint[:12]}; install the version pinned in constraints.txt"
        )
    return encoder
