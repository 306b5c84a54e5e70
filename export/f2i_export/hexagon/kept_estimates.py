"""Estimates that were made before, in the cache by the content of all that went into them: a compilation takes seconds to minutes, and repeats exactly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version

from f2i_runtime.files import atomic_file, cache_root
from f2i_runtime.hexagon.qnn_provider import DISTRIBUTION

from f2i_export.hexagon.compiler_profile import CompilerEstimate

TOOLS = (DISTRIBUTION, "onnxruntime")
"""The packages whose versions an estimate depends on."""


def kept_estimate(content: Sequence[str], make: Callable[[], CompilerEstimate]) -> CompilerEstimate:
    """Returns the estimate of ``content``, which names the graph, the precision and the chip: from the cache, or from ``make`` and then into the cache."""
    key = [*content, *(version(name) for name in TOOLS)]
    path = cache_root() / "estimates" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.json"
    try:
        held = json.loads(path.read_text())
        return CompilerEstimate(**held | {"uncosted_names": tuple(held["uncosted_names"])})
    except (OSError, ValueError, TypeError, KeyError):
        pass  # never made, or not whole: it is made now
    made = make()
    with atomic_file(path) as staging:
        staging.write_text(json.dumps(asdict(made)))
    return made
