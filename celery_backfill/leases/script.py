"""The store's scripts, read from package data: one file a verb, the shared part put in after the first line."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha1
from importlib.resources import files

_FOLDER = files(__package__) / "lua"
_COMMON = (_FOLDER / "_common.lua").read_text()


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua script: its text and the digest under which the server caches it."""

    name: str
    text: str = field(repr=False)
    digest: str = field(repr=False)

    @classmethod
    def load(cls, name: str) -> Script:
        """Read ``lua/<name>.lua``; its first line (``#!lua``) stays first."""
        first, rest = (_FOLDER / f"{name}.lua").read_text().split("\n", 1)
        text = f"{first}\n{_COMMON}\n{rest}"
        return cls(name, text, sha1(text.encode(), usedforsecurity=False).hexdigest())


ADMIT = Script.load("admit")
SETTLE = Script.load("settle")
CLAIM = Script.load("claim")
RENEW = Script.load("renew")
RECOVER = Script.load("recover")
REGISTER = Script.load("register")
