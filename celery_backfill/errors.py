"""Every error of this library.

BackfillError
├── ConfigurationError      a setting or a task's declaration is unusable; says what to write
├── InvalidKeyError         a task's concurrency key cannot be resolved from its arguments
├── NonRetryableError       raise it in a task: the task fails at once, whatever its retries
├── LeaseLostError          the task's lease is no longer its own
├── TaskExitedError         the task called sys.exit() or was interrupted
├── TaskOutOfMemoryError    the task raised MemoryError
├── StoreUnavailableError   Redis did not answer in time; nothing is known of the call
│   └── StoreChangedError   Redis was restarted or has lost its data; nothing was done
├── LettersUnavailableError PostgreSQL cannot be used now; safe to repeat
├── LetterRefusedError      PostgreSQL refuses these very data
├── SchemaError             the store or the database was written by a version this one cannot read
└── RequeueError            a dead letter cannot be sent again; says why
"""

from __future__ import annotations


class BackfillError(Exception):
    """Base of every error of this library."""


class ConfigurationError(BackfillError, ValueError):
    """A setting or a declaration is unusable; the message says what to write instead."""


class InvalidKeyError(BackfillError, ValueError):
    """A concurrency key could not be made from a task's arguments."""


class NonRetryableError(BackfillError):
    """Raise it (or a subclass) in a task to fail at once, with no retry."""

    retryable = False


class LeaseLostError(BackfillError):
    """The attempt's lease ran out or was given to another run; the result will not count."""


class TaskExitedError(BackfillError):
    """The task's code called ``sys.exit()`` or raised another ``BaseException``."""


class TaskOutOfMemoryError(BackfillError):
    """The task's code raised ``MemoryError``."""


class StoreUnavailableError(BackfillError, ConnectionError):
    """Redis did not answer in time. Whether the call took effect is unknown; it is safe to repeat."""


class StoreChangedError(StoreUnavailableError):
    """Redis was restarted or has lost its data since this worker joined it. Nothing was done."""


class LettersUnavailableError(BackfillError, ConnectionError):
    """PostgreSQL cannot be used now. Whether the call took effect is unknown; it is safe to repeat."""


class LetterRefusedError(BackfillError, ValueError):
    """PostgreSQL refuses these very data; repeating the call cannot help. Nothing was changed."""


class SchemaError(BackfillError):
    """What is stored was written by a version that this one cannot read."""


class RequeueError(BackfillError):
    """A dead letter cannot be sent again; the message says why."""
