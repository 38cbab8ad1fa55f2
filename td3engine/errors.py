"""What ends a run without being a fault of the program. Imports no torch."""


class UnusableError(ValueError):
    """Something that was handed in cannot be used; the message says what and why."""


class BundleError(UnusableError):
    """A summary's files are missing, damaged, or not a summary."""


class CheckpointMismatchError(UnusableError):
    """The checkpoint in the folder belongs to another log or configuration."""


class WrongLogError(UnusableError):
    """A log is not the one that a summary was made from."""


class DeviceError(UnusableError):
    """The configured device is not there."""


class Interrupted(Exception):
    """The run was asked to stop; its state has been handed to the checkpoint."""
