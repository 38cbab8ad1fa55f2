"""Errors of the input, of other processes, and stops: no faults of the program. No torch."""


class UnusableError(ValueError):
    """The input cannot be used; the message says which part of it, and why.

    Attributes:
        code: a stable name of the error, for programs.
    """

    code = "unusable"


class ConfigError(UnusableError):
    """Settings that cannot work on a log of this size."""

    code = "invalid_config"


class BundleError(UnusableError):
    """A folder holds no summary, or a damaged one."""

    code = "bad_bundle"


class CheckpointMismatchError(UnusableError):
    """The checkpoint in the folder belongs to another log or configuration."""

    code = "checkpoint_mismatch"


class DamagedCheckpointError(CheckpointMismatchError):
    """The checkpoint in the folder cannot be read."""

    code = "bad_checkpoint"


class WrongLogError(UnusableError):
    """The log is not the one that the summary or the model was made from."""

    code = "wrong_log"


class OutputExistsError(UnusableError):
    """The output exists: a finished summary in the folder, or a file of that name."""

    code = "output_exists"


class DeviceError(UnusableError):
    """The configured device does not exist on this machine."""

    code = "no_device"


class DivergedError(UnusableError):
    """Training produced numbers that are not finite; the settings cannot work on this log."""

    code = "diverged"


class RanksError(UnusableError):
    """The processes of a run cannot distil together: they are too many, or their jobs differ."""

    code = "bad_ranks"


class PeerLostError(Exception):
    """Another process of the same run has ended or does not answer."""


class Interrupted(Exception):
    """The run was stopped from outside; its state is in the checkpoint."""
