"""Qualcomm's libraries in the installed wheel, in the places where other tools look for them: links in a temporary folder, and nothing copied."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from f2i_runtime.hexagon.qnn_provider import QnnWheel

PLACE = Path("lib") / "x86_64-linux-clang"
"""Where an installation of Qualcomm's SDK has the libraries of this system."""
ABSENT = {"libQnnLpai.so": "libQnnSystem.so"}
"""Libraries that a tool names, that the wheel lacks, and that the HTP needs nothing of → one that is loaded in their stead."""
BESIDE = "onnxruntime_qnn.libs"
"""The folder beside the wheel's with the C++ library that its libraries were built with."""


def link_libraries(wheel: QnnWheel, folder: Path) -> Path:
    """Make ``folder`` look like an installation of Qualcomm's SDK, with links; returns the folder of the libraries in it."""
    own, place = wheel.backend.parent, folder / PLACE
    place.mkdir(parents=True)
    for library in own.glob("lib*.so"):
        (place / library.name).symlink_to(library)
    for name, stand_in in ABSENT.items():
        if not (place / name).exists():
            (place / name).symlink_to(own / stand_in)
    return place


def library_path(wheel: QnnWheel, place: Path, more: Sequence[str] = ()) -> str:
    """Returns the ``LD_LIBRARY_PATH`` of a child: the linked libraries, what they need, ``more``, and what this process has."""
    before = os.environ.get("LD_LIBRARY_PATH", "")
    return os.pathsep.join(part for part in (str(place), str(wheel.backend.parent.with_name(BESIDE)), *more, before) if part)
