"""Limits: which keys a call of a task counts against, and how many may run per key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from inspect import Parameter, Signature
from typing import Any

from .errors import ConfigurationError, InvalidKeyError

KeyTemplate = str | Callable[[Sequence[Any], Mapping[str, Any]], str]

MAX_KEY_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``capacity`` attempts run at once per key, over all workers.

    ``key`` is a template over the call's arguments by name (``"tenant:{tenant_id}"``), or a callable of the positional
    and keyword arguments. Keys are one namespace for the whole app: two tasks with the same key text share the limit.
    """

    key: KeyTemplate
    capacity: int

    def __post_init__(self) -> None:
        if not (isinstance(self.key, str) and self.key) and not callable(self.key):
            raise ConfigurationError(
                f'concurrency_key must be a template such as "tenant:{{tenant_id}}" or a callable, not {self.key!r}'
            )
        if not isinstance(self.capacity, int) or isinstance(self.capacity, bool) or self.capacity < 1:
            raise ConfigurationError(f"concurrency_limit must be a whole number of at least 1, not {self.capacity!r}")

    def resolve(self, arguments: Arguments) -> str:
        """The key of one call. Raises ``InvalidKeyError`` when the arguments give none."""
        try:
            key = self.key(arguments.args, arguments.kwargs) if callable(self.key) else self.key.format_map(arguments)
        except Exception as error:
            raise InvalidKeyError(f"concurrency key {self.key!r} cannot be made of the arguments: {error!r}") from error
        return check_key(key)


def check_key(key: Any) -> str:
    """The key, when it can be one: text that is not empty and at most 1,024 bytes. Raises ``InvalidKeyError``."""
    if not isinstance(key, str) or not key:
        raise InvalidKeyError(f"a concurrency key must be text and not empty, not {key!r}")
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise InvalidKeyError(f"a concurrency key must be text that UTF-8 can write, not {key!r}") from error
    if size > MAX_KEY_BYTES:
        raise InvalidKeyError(f"a concurrency key may have {MAX_KEY_BYTES} bytes at the most; hash longer ones")
    return key


def capacity_of(key: str, declared: int, configured: Mapping[str, int]) -> int:
    """The capacity of a key: in ``backfill_limits`` by its name, else by the first glob that matches, else declared."""
    if key in configured:
        return configured[key]
    return next((number for glob, number in configured.items() if fnmatchcase(key, glob)), declared)


class Arguments(dict[str, Any]):
    """One call's arguments by name, defaults applied, as ``str.format_map`` wants them."""

    def __init__(self, signature: Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs
        named = (p for p in signature.parameters.values() if p.kind in _POSITIONAL)
        super().__init__({name: p.default for name, p in signature.parameters.items() if p.default is not p.empty})
        self.update(zip((p.name for p in named), args, strict=False))
        self.update(kwargs)

    def __missing__(self, name: str) -> Any:
        raise KeyError(f"no argument {name!r}; the call has {', '.join(map(repr, self)) or 'none'}")


_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
