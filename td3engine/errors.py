"""What ends a run without being a fault of the program. Imports no torch."""


class UnusableError(ValueError):
    """Something that was handed in cannot be used; the message says what and why.

    Attributes:
        code: stable, for programs.
    """

    code = "unusable"


class BundleError(UnusableError):
    """A summary's files are missing, damaged, or not a summary."""

    code = "bad_bundle"


class CheckpointMismatchError(UnusableError):
    """The checkpoint in the folder belongs to another log or configuration."""

    code = "checkpoint_mismatch"


class WrongLogError(UnusableError):
    """A log is not the one that a summary was made from."""

    code = "wrong_log"


class OutputExistsError(UnusableError):
    """The folder to write to holds a finished summary."""

    code = "output_exists"


class DeviceError(UnusableError):
    """The configured device is not there."""

    code = "no_device"


class DivergedError(UnusableError):
    """Training produced numbers that are not finite; the settings cannot work on this log."""

    code = "diverged"


class RanksError(UnusableError):
    """The processes of a run cannot distil together: too many of them, or not on the same job."""

    code = "bad_ranks"


class PeerLostError(Exception):
    """Another process of the same run has ended or does not answer."""


class Interrupted(Exception):
    """The run was asked to stop; its state has been handed to the checkpoint."""
