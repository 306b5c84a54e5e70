"""The import of coremltools, in a process of ours without the libraries that it only converts from.

coremltools imports every library that it finds and can convert models of: with all of ours installed that takes 14 s of processor time, where torch alone
takes 2 (measured). A program that uses this package as a library keeps coremltools whole.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import cast

SOURCES = ("executorch", "libsvm", "sklearn", "tensorflow", "torchao", "torchaudio", "torchvision", "transformers", "xgboost")
"""Packages that coremltools does without: it says so of each where it is missing."""

_state = {"ours": False}


def in_our_process() -> None:
    """Says that this process is one of our own commands: nobody else converts models here."""
    _state["ours"] = True


def import_coremltools() -> None:
    """Imports coremltools, the sources unseen in a process of ours. Raises ImportError where coremltools is missing."""
    hidden = [name for name in SOURCES if _state["ours"] and name not in sys.modules] if "coremltools" not in sys.modules else []
    # What is None there is not found by an import statement.
    modules = cast("dict[str, ModuleType | None]", sys.modules)
    modules.update(dict.fromkeys(hidden))
    try:
        importlib.import_module("coremltools")
    finally:
        for name in hidden:
            del modules[name]
