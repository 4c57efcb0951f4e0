"""One short name for failures that are the same but for their data."""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath

HEX_DIGITS = 16
READ_CHARACTERS = 2000

_MASKS = (
    (re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"), "<id>"),
    (re.compile(r"(?<!\w)'[^'\n]*'(?!\w)|(?<!\w)\"[^\"\n]*\"(?!\w)|`[^`\n]*`"), "<text>"),
    (re.compile(r"\b0[xX][0-9a-fA-F]+\b|\b(?=[a-fA-F]*\d)[0-9a-fA-F]{8,}\b"), "<id>"),
    (re.compile(r"\d+(?:[.,:]\d+)*"), "<n>"),
)
_FRAME = re.compile(r'^\s*File "([^"\n]+)", line \d+, in (.+)$', re.MULTILINE)
_NOT_OWN = re.compile(r"/(?:site|dist)-packages/|/lib(?:64)?/python3[^/]*/|^<")


def fingerprint(task: str, exception_type: str, message: str, traceback: str) -> str:
    """16 hex digits: equal for one task, exception type, innermost own frame and masked message.

    Line numbers and all but the last two parts of a file's path do not count, so that a deploy keeps the groups.
    """
    parts = (task, exception_type, masked(message), own_frame(traceback))
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:HEX_DIGITS]


def masked(message: str) -> str:
    """The start of a message with its ids, quoted parts and numbers blotted out."""
    text = message[:READ_CHARACTERS]
    for pattern, stand_in in _MASKS:
        text = pattern.sub(stand_in, text)
    return text


def own_frame(traceback: str) -> str:
    """``folder/file.py:function`` of the last frame outside libraries, or ``""``."""
    frames = [(path.replace("\\", "/"), function) for path, function in _FRAME.findall(traceback)]
    own = [(path, function) for path, function in frames if not _NOT_OWN.search(path)]
    if not own:
        return ""
    path, function = own[-1]
    return f"{'/'.join(PurePosixPath(path).parts[-2:])}:{function.strip()}"
