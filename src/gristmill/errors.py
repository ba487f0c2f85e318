"""How a process ends: one exception class per action a person or a scheduler can take, each with its exit code.

Kubernetes reads nothing of a failed process but its exit code, so the class is the decision: codes 2 to 79 other than 70, 75 and 76
mean that trying again cannot help.
"""

import errno
import os


class GristmillError(Exception):
    """An expected failure. Its message has four parts: what went wrong, what was found, what was expected, what to do next."""

    exit_code = 1

    def __init__(self, what: str, *, found: str, expected: str, next_step: str) -> None:
        super().__init__(f"{what}\n  found:    {found}\n  expected: {expected}\n  next:     {next_step}")
        self.what = what
        self.found = found
        self.expected = expected
        self.next_step = next_step


class JobError(GristmillError):
    """The job file or the command line is wrong."""

    exit_code = 2


class InputError(GristmillError):
    """What an earlier stage left is missing, corrupt, or does not match."""

    exit_code = 65


class SourceError(GristmillError):
    """A source of text cannot be had, or holds no usable text."""

    exit_code = 66


class PreemptedError(GristmillError):
    """The process was told to stop; its state is saved."""

    exit_code = 75


class AccessError(GristmillError):
    """Permission denied."""

    exit_code = 77


class MachineError(GristmillError):
    """This machine or its mesh cannot run the job: devices, memory, disk, topology."""

    exit_code = 78


class DivergedError(GristmillError):
    """The loss is not finite, or spiked and did not come back."""

    exit_code = 79


_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def from_os_error(error: OSError | RuntimeError | ValueError) -> GristmillError | None:
    """The expected failure that an operating-system error stands for; None where it is none that a person can act on.

    Libraries in C++ hand on the system's words alone, in a RuntimeError or ValueError.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        number = next((one for one in _FULL | _FORBIDDEN if os.strerror(one) in str(error)), None)
    reason = os.strerror(number) if number else ""
    where = str(getattr(error, "filename", None) or str(error).splitlines()[0])
    if number in _FULL:
        return MachineError(
            "the disk is full",
            found=f"no space left while writing {where}",
            expected="room for the stage's output and one temporary copy of a file",
            next_step="free space or name another bucket, then run the same command again: finished tasks are kept",
        )
    if number in _FORBIDDEN:
        return AccessError(
            "permission denied",
            found=f"{reason} at {where}",
            expected="read and write access to the bucket and read access to the sources",
            next_step="grant access to the account that runs this command, then run it again",
        )
    return None
