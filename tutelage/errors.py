"""Errors that a user can act on: each names what was wrong, where, and what to do."""

import os
import traceback

DEBUG = "TUTELAGE_DEBUG"
"""Environment variable; with 1 whatever ends as one line is preceded by its traceback."""


def show_traceback() -> None:
    """On stderr that of the exception that is being handled, for those who set TUTELAGE_DEBUG=1."""
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        traceback.print_exc()


class TutelageError(Exception):
    """Base of all errors that the command line prints as one line and a non-zero exit."""


class ConfigError(TutelageError):
    """A setting that is unknown, of the wrong type, or at odds with another one."""


class OracleError(TutelageError):
    """An expert that cannot be reached, or whose answers cannot be used."""


class Unreachable(OracleError):
    """An expert that is not there, or says nothing: another question would fare no better now."""


class TrainingError(TutelageError):
    """Training that cannot go on: the loss diverged, or nobody is left to collect."""


class DatasetError(TutelageError):
    """Data on disk, or offered for it, that cannot be used."""


class ServiceError(TutelageError):
    """A service or its store that cannot start, or cannot be reached."""


class NoRoom(TutelageError):
    """A disk that is full."""


class Killed(TutelageError):
    """A process that a signal ended, whether by what it did or by chance."""
