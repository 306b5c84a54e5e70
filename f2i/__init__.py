"""F2I mobile: take F2IDiff super-resolution models to phones, and prove what arrives there.

The functions are documented in :mod:`f2i.api`; ``f2i.coreml_on_linux`` gives coremltools' ``MLModel.predict`` to Linux. Importing this package imports
nothing else: each name is loaded when it is used first.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from f2i_bench.bench import BenchOptions
    from f2i_bench.core.protocol import BenchReport
    from f2i_runtime import __version__
    from f2i_runtime.bundle.store import Bundle
    from f2i_runtime.errors import (
        BundleError,
        CheckpointError,
        F2IError,
        GateError,
        MilError,
        MissingPackageError,
        PhotoError,
        ToolchainError,
        UsageError,
    )
    from f2i_runtime.pipeline import PhotoOptions, Pipeline
    from f2i_runtime.validation.results import Report
    from f2i_runtime.validation.validate_options import ValidateOptions

    from f2i.api import (
        ExportSettings,
        TargetSupport,
        bench,
        export,
        inspect,
        list_targets,
        open_bundle,
        open_engine,
        quantize,
        upscale,
        upscale_file,
        validate,
        verify,
    )
    from f2i.inspection import Inspection

__all__ = [
    "BenchOptions",
    "BenchReport",
    "Bundle",
    "BundleError",
    "CheckpointError",
    "ExportSettings",
    "F2IError",
    "GateError",
    "Inspection",
    "MilError",
    "MissingPackageError",
    "PhotoError",
    "PhotoOptions",
    "Pipeline",
    "Report",
    "TargetSupport",
    "ToolchainError",
    "UsageError",
    "ValidateOptions",
    "__version__",
    "bench",
    "export",
    "inspect",
    "list_targets",
    "open_bundle",
    "open_engine",
    "quantize",
    "upscale",
    "upscale_file",
    "validate",
    "verify",
]

_HOMES = {
    "BenchOptions": "f2i_bench.bench",
    "BenchReport": "f2i_bench.core.protocol",
    "Bundle": "f2i_runtime.bundle.store",
    "Inspection": "f2i.inspection",
    "PhotoOptions": "f2i_runtime.pipeline",
    "Pipeline": "f2i_runtime.pipeline",
    "Report": "f2i_runtime.validation.results",
    "ValidateOptions": "f2i_runtime.validation.validate_options",
    "__version__": "f2i_runtime",
}
"""The module of each record; errors are in ``f2i_runtime.errors``, all else is in ``f2i.api``."""


if not TYPE_CHECKING:  # a type checker would take any name for one that exists

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = _HOMES.get(name, "f2i_runtime.errors" if name.endswith("Error") else "f2i.api")
        value = getattr(importlib.import_module(home), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
