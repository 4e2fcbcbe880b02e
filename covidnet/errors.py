"""The errors a user meets: what was expected, what was found, how to mend it, and an exit code."""


class CovidnetError(Exception):
    """A fault found in data, files or results; the CLI prints the message without a traceback and exits 1."""

    exit_code = 1


class UsageError(CovidnetError):
    """A wrong option, parameter or path given by the user; the CLI exits 2."""

    exit_code = 2


class ScanError(CovidnetError):
    """One scan can't be read or isn't a usable chest CT; `ingest` writes the message to `rejected.csv` and goes on.

    Messages never carry patient names, dates or UIDs.
    """
