"""Errors that a user can fix.

Each carries one line: what is wrong with its value, where, and what to do. `main.py` and the scripts print that line on
stderr and exit with status 2. A fault of HIM itself is an `assert` or an ordinary exception, with its traceback.
"""


class HimError(Exception):
    """Base of all errors that are the input's, the machine's or the user's, not the program's."""


class ConfigError(HimError):
    """A flag, a configuration file or a combination of settings is wrong."""


class DataError(HimError):
    """A data file, a data set or a text is missing, damaged or unfit."""


class CheckpointError(HimError):
    """A run folder, a checkpoint or a model file is missing, damaged or unfit."""
