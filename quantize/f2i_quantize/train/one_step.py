"""The student that a teacher of several steps becomes: ``python -m f2i_quantize.train.one_step MANY_STEPS OUT``.

The steps are z ← keep · z + add · u(z, timestep). Were u the same at all of them, z would end at ∏keep · z + Σ add_k · ∏ keep_(after k) · u: that is the one
step the student starts with, at the first timestep, with the teacher's weights. ``f2i distill --teacher MANY_STEPS --student OUT`` then trains it to end
where the teacher does.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from f2i_runtime.errors import F2IError, UsageError

from f2i_quantize.models import checkpoint
from f2i_quantize.models.config import Step
from f2i_quantize.models.whole_model import F2IModel


def one_step(teacher: F2IModel) -> F2IModel:
    """Returns the model whose only step goes as far as all of the teacher's. It shares the teacher's weights. Raises UsageError where there is but one."""
    steps = teacher.config.steps
    if len(steps) == 1:
        raise UsageError("the teacher takes one step already; give one of several steps")
    keep, add = 1.0, 0.0
    for step in steps:
        keep, add = step.keep * keep, step.keep * add + step.add
    only = Step(timestep=steps[0].timestep, keep=keep, add=add)
    return replace(teacher, config=teacher.config.model_copy(update={"steps": (only,)}))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m f2i_quantize.train.one_step", description="The one-step student of a teacher of several steps."
    )
    parser.add_argument("teacher", help="a checkpoint of several steps")
    parser.add_argument("out", type=Path, help="the checkpoint folder to write")
    given = parser.parse_args(arguments)
    try:
        checkpoint.save(one_step(checkpoint.load(given.teacher)), given.out)
    except F2IError as e:
        sys.stderr.write(f"error: {e}\n")
        return e.exit_code
    sys.stdout.write(f"{given.out}: train it with f2i distill --teacher {given.teacher} --student {given.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
