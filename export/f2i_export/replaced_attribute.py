"""Another attribute for the length of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    """Give ``owner`` another attribute for the length of a block. What it had is put back however the block ends.

    For what a library looks up by name when it runs and takes no argument for. Raises AttributeError where the library has no such name any more.
    """
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
