"""Every error that a user can meet, in one tree.

    F2IError                     exit code
    ├── UsageError               2   bad usage or bad input
    │   ├── PhotoError               a photo that cannot be read or written
    │   ├── BundleError              a bundle that is incomplete, corrupted or of another schema
    │   ├── CheckpointError          a checkpoint with a wrong file, key or shape
    │   ├── MilError                 a Core ML package that is malformed or holds an op we do not know
    │   └── MissingPackageError      an optional package that is not installed
    ├── GateError                1   a parity gate failed
    └── ToolchainError           3   a converter or engine failed: component, target, stage, log

A message says what was got, what was expected and what to do next, in one line.
"""

from __future__ import annotations

from pathlib import Path


class F2IError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what the command returns."""

    exit_code = 1


class UsageError(F2IError):
    """Bad usage or bad input."""

    exit_code = 2


class PhotoError(UsageError):
    """A photo that cannot be read or written."""


class BundleError(UsageError):
    """A bundle that is incomplete, corrupted, or written by another schema."""


class CheckpointError(UsageError):
    """A checkpoint with a missing or wrong file, key or shape."""


class MilError(UsageError):
    """A Core ML package that is malformed, or an op or attribute in it that the evaluator does not know."""


class MissingPackageError(UsageError):
    """An optional package is not installed."""

    def __init__(self, package: str, purpose: str, extra: str) -> None:
        self.package = package
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed; install it with: pip install 'f2i-mobile[{extra}]'"
        )


def system_message(error: OSError) -> str:
    """Returns what the system said, in its own words: neither "busy" nor "no permission" is a safe guess."""
    return error.strerror or " ".join(str(error).split()) or type(error).__name__


class GateError(F2IError):
    """A parity gate failed."""

    exit_code = 1


class ToolchainError(F2IError):
    """A converter or an engine failed on valid input."""

    exit_code = 3

    def __init__(self, *, component: str, target: str, stage: str, reason: str, log: Path | None = None) -> None:
        self.component, self.target, self.stage, self.reason, self.log = component, target, stage, reason, log
        where = f"; log: {log}" if log else ""
        super().__init__(f"{target}: {stage} of {component} failed: {' '.join(reason.split())}{where}")
