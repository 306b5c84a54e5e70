"""Core ML programs on Linux, for users of coremltools: ``MLModel.predict`` works where Apple's framework is missing.

    import coremltools as ct
    from f2i.coreml_on_linux import install

    undo = install()                                    # on macOS it changes nothing
    model = ct.models.MLModel("model.mlpackage")
    model.predict({"x": array})

It needs coremltools and torch, which one extra of this package installs (``docs/core-ml-on-linux.md`` has the command), and nothing else of this toolkit.
:func:`load` runs a package without coremltools' ``MLModel``: numpy arrays in, numpy arrays out. What the evaluator proves and what it cannot: :mod:`f2i_runtime.mil`.

Importing this module imports neither coremltools nor torch.
"""

from __future__ import annotations

from collections.abc import Callable

from f2i_runtime.mil import load

__all__ = ["install", "load"]


def install(*, replace_native: bool = False) -> Callable[[], None]:
    """Routes ``MLModel.predict`` and ``MLModel.make_state`` of the installed coremltools to the evaluator. Returns the function that undoes it.

    Models that are opened afterwards predict with torch's CPU kernels; every result is rounded to the type that the program declares. ML Programs of
    iOS 15 to 18 work, with states, several functions, image inputs and compressed weights. A program that cannot be loaded or run is a RuntimeError of
    ``predict``, as with Core ML itself, and names the operation.

    Args:
        replace_native: also where Core ML is present (macOS); without it, such a machine keeps its own.

    Raises:
        f2i.MissingPackageError: coremltools is not installed; the message has the command that installs it.
    """
    from f2i_runtime.mil.predict import install as route

    return route(replace_native=replace_native)
