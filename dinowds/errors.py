"""The errors that dinowds raises on purpose.

Each message is one line that names the file, key or option, what was found, what was expected and what to do.
The command line prints it and exits with the class's `exit_code`; anything else that escapes is a bug.
"""

from __future__ import annotations

from typing import ClassVar


class DinowdsError(Exception):
    """Base of all expected failures."""

    exit_code: ClassVar[int] = 1


class SourceError(DinowdsError):
    """An input of `dinowds shard` cannot be used."""


class OutputError(DinowdsError):
    """An output cannot be written, or something is in its place."""


class DatasetError(DinowdsError):
    """A dataset on disk is missing, unfinished, damaged, or of an unknown version."""


class SampleError(DatasetError):
    """One sample cannot be read or decoded. The loader replaces it, up to a budget."""


class StorageError(DinowdsError):
    """A remote file cannot be read or written, after all tries."""


class ConfigError(DinowdsError):
    """A configuration has an unknown key or a value that cannot work."""


class CheckpointError(DinowdsError):
    """A checkpoint is missing, damaged, or of another model or run."""


class TrainingError(DinowdsError):
    """Training cannot go on."""


class Interrupted(DinowdsError):
    """Ctrl-C or SIGTERM where what is done is on disk already; the same command goes on."""

    exit_code: ClassVar[int] = 75


class StoppedBySignal(DinowdsError):
    """Stopped early on a signal; what was done is saved and the same command goes on."""

    exit_code: ClassVar[int] = 75
