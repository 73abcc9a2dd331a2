"""Who may do what, and how often. A file of keys holds their digests; a key itself is shown once, when it is made.

Keys are 256 random bits, so that a plain digest of them cannot be turned back, and looking one up takes no time that
depends on how much of it is right.
"""

import hashlib
import json
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pixelcascade.files import write_atomically
from pixelcascade.names import nearest

SCOPES = ("generate", "metrics")
_PREFIX = "pc-"


@dataclass(frozen=True)
class Key:
    """name: of whoever holds it, in logs. digest: SHA-256. rate: pictures a minute; None: as many as there is room."""

    name: str
    digest: str
    scopes: tuple[str, ...] = SCOPES
    rate: float | None = None

    def __post_init__(self):
        for scope in self.scopes:
            if scope not in SCOPES:
                raise ValueError(f"unknown scope {scope!r}{nearest(scope, SCOPES)}")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise ValueError(f"rate is {self.rate}; a positive number of pictures a minute")


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def load_keys(path: Path) -> list[Key]:
    """ValueError, in one line, for a file that is none."""
    try:
        data = json.loads(path.read_text())
        keys = [Key(row["name"], row["digest"], tuple(row["scopes"]), row["rate"]) for row in data["keys"]]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except (KeyError, TypeError, json.JSONDecodeError):
        raise ValueError(f"{path} is no file of keys; make one with `pixelcascade key`") from None
    if not keys:
        raise ValueError(f"{path} holds no key; make one with `pixelcascade key`")
    return keys


def add_key(path: Path, name: str, scopes: Sequence[str] = SCOPES, rate: float | None = None) -> str:
    """A new key, whose digest is now in the file; one of that name is replaced."""
    key = _PREFIX + secrets.token_urlsafe(32)
    new = Key(name, digest_of(key), tuple(scopes), rate)
    kept = [old for old in load_keys(path) if old.name != name] if path.exists() else []
    rows = [{"name": k.name, "digest": k.digest, "scopes": list(k.scopes), "rate": k.rate} for k in [*kept, new]]
    write_atomically(path, (json.dumps({"format": 1, "keys": rows}, indent=2) + "\n").encode())
    path.chmod(0o600)
    return key


class Rates:
    """Pictures of each key within a minute: buckets that fill evenly. Times are in seconds and are passed in."""

    def __init__(self):
        self._buckets: dict[str, tuple[float, float]] = {}  # what is left, and when that was

    def take(self, key: Key, count: int, now: float) -> float:
        """0.0 if so many may be painted now; else the seconds to wait, and nothing is taken.

        A request for more than a minute's worth is let in when the bucket is full.
        """
        if key.rate is None:
            return 0.0
        most = max(1.0, key.rate)
        left, then = self._buckets.get(key.name, (most, now))
        left = min(most, left + (now - then) * key.rate / 60)
        needed = min(float(count), most)
        if left < needed:
            self._buckets[key.name] = (left, now)
            return (needed - left) * 60 / key.rate
        self._buckets[key.name] = (left - count, now)
        return 0.0

    def give_back(self, key: Key, count: int) -> None:
        """What was taken for a request that there was no room for."""
        if key.name in self._buckets:
            left, then = self._buckets[key.name]
            self._buckets[key.name] = (left + count, then)
