"""Finished pictures in a folder, for clients that ask for a URL: the newest ones, under names that nobody can guess."""

import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from pixelcascade.files import write_atomically

_NAME = re.compile(r"[A-Za-z0-9_-]{32}\.(png|webp|jpeg)")


@dataclass(frozen=True)
class Store:
    """most: pictures, of which the oldest go first. keep_s: for how long."""

    folder: Path
    most: int = 1000
    keep_s: float = 24 * 3600.0

    def keep(self, data: bytes, format: str) -> str:
        """The picture's name."""
        name = f"{secrets.token_urlsafe(24)}.{format}"
        write_atomically(self.folder / name, data)
        self._prune()
        return name

    def find(self, name: str) -> Path | None:
        """Its file, if it is a name of ours and still there."""
        path = self.folder / name
        if not _NAME.fullmatch(name) or not path.is_file() or time.time() - path.stat().st_mtime > self.keep_s:
            return None
        return path

    def _prune(self) -> None:
        """Only files that have names of ours."""
        files = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        files.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for index, path in enumerate(files):
            if index >= self.most or time.time() - path.stat().st_mtime > self.keep_s:
                path.unlink(missing_ok=True)
