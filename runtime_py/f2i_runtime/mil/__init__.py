"""Runs the Core ML ML Program saved in an ``.mlpackage`` on any system, with torch's CPU kernels as arithmetic.

    from f2i.coreml_on_linux import load    # the same as f2i_runtime.mil.load
    outputs = load("unet.mlpackage")({"latent": ..., "context": ...})    # numpy in, numpy out

It proves the graph, the weights, their compression and the declared precision of what was saved. It cannot prove what Apple's own kernels
do with it: the Neural Engine's accumulation, fused attention, placement, compile failures and latency.

| room | what it holds |
|---|---|
| ``format`` | reading: the package's manifest, the protobuf, the weight file, operations, compressed constants, and everything that can be wrong with them |
| ``execute`` | running a program: the plan, constants, arguments, accumulation in fp16, the evaluator |
| ``ops`` | what each operation computes: ``ops_*`` by kind, ``optable`` by name and opset |
| ``judge`` | comparing with the program it was converted from: the first operation out of band, changed weights or attributes; what leaves the Neural Engine |
| ``conformance`` | coremltools' own operation tests, run against this evaluator, and against one that is wrong by 1 %: ``CONFORMANCE.md`` |
| ``predict`` | gives coremltools' own ``MLModel.predict`` to systems without Core ML; users call it as :func:`f2i.coreml_on_linux.install` |

Importing this package imports neither torch nor coremltools.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from f2i_runtime.mil.execute.evaluator import Evaluator

__all__ = ["load"]


def load(path: str | Path, function: str | None = None, mode: str = "declared") -> Evaluator:
    """Opens the package at ``path``, decompresses its weights and returns its evaluator; see :class:`f2i_runtime.mil.execute.evaluator.Evaluator`.

    Raises :class:`f2i_runtime.errors.MilError` for a malformed package or an unknown operation, attribute, function or mode.
    """
    from f2i_runtime.mil.execute.evaluator import Evaluator

    return Evaluator(Path(path), function=function, mode=mode)
