"""The store's scripts, read from package data: one file a verb, and the parts that they include."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import sha1
from importlib.resources import files

_FOLDER = files(__package__) / "lua"
_INCLUDE = re.compile(r"^--include (\w+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua script: its text and the digest under which the server caches it."""

    name: str
    text: str = field(repr=False)
    digest: str = field(repr=False)

    @classmethod
    def load(cls, name: str) -> Script:
        """Read ``lua/<name>.lua``; a line ``--include part`` stands for ``lua/_part.lua``."""
        text = _INCLUDE.sub(lambda match: _read(f"_{match[1]}"), _read(name))
        return cls(name, text, sha1(text.encode(), usedforsecurity=False).hexdigest())


def _read(name: str) -> str:
    return (_FOLDER / f"{name}.lua").read_text()


ADMIT = Script.load("admit")
SETTLE = Script.load("settle")
CLAIM = Script.load("claim")
RENEW = Script.load("renew")
RECOVER = Script.load("recover")
GREET = Script.load("greet")
ADOPT = Script.load("adopt")
JOIN = Script.load("join")
LEAVE = Script.load("leave")
ALL = (ADMIT, SETTLE, CLAIM, RENEW, RECOVER, GREET, ADOPT, JOIN, LEAVE)
