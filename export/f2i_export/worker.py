"""The child process of an export: ``python -m f2i_export.worker JOBS.json OUTPUT_DIR EVENTS_FD``.

It does one or more jobs that share a target, those of a component one after another, so that toolchains are imported once, and weights loaded and
rewrites proved once for all precisions of a component. Job ``i`` leaves its result in ``OUTPUT_DIR/i``. Everything printed goes to the log that the parent chose.
"""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from f2i_runtime.child_process import die_with_parent
from f2i_runtime.errors import F2IError, ToolchainError

from f2i_export.jobs import RESULT, Job
from f2i_export.stages import Stages, tell

if TYPE_CHECKING:
    from f2i_export.component_lowering import Lowering


@dataclass
class _Child:
    """What the jobs of one child share. ``reference``: the reference job's result; ``scratch``: a folder for what a component's precisions have in common."""

    reference: Path
    scratch: Path
    lowering: tuple[str, Lowering] | None = None
    """The component that is being lowered, and what its precisions share."""

    def do(self, job: Job, folder: Path, stages: Stages) -> dict[str, object]:
        """Do one job, whose files go into ``folder``, and return its result. Toolchains are imported here, by the first job that needs them."""
        if job.kind == "reference":
            from f2i_export.reference_capture import capture_reference

            return capture_reference(job, folder, stages)
        if job.kind == "simulate":
            from f2i_export.qdq_programs import capture_simulated

            return capture_simulated(job, folder, stages, self.reference)
        from f2i_export.component_lowering import Lowering, lower_component

        stages.begin("load")
        if self.lowering is None or self.lowering[0] != job.component:
            self.lowering = (job.component, Lowering(job, self.reference))
        scratch = self.scratch / job.component
        scratch.mkdir(exist_ok=True)
        return lower_component(job, folder, scratch, stages, self.lowering[1])


def main(arguments: list[str]) -> int:
    """Do all jobs. Exit code 0, or that of the error, whose text goes to the parent as the last event."""
    request_file, out, events = Path(arguments[0]), Path(arguments[1]), int(arguments[2])
    request = json.loads(request_file.read_text())
    jobs = [Job(**job | {"options": tuple(tuple(o) for o in job["options"])}) for job in request["jobs"]]
    child = _Child(Path(request["reference"]), out / "scratch")
    child.scratch.mkdir()
    die_with_parent()
    for index, job in enumerate(jobs):
        stages, folder = Stages(events, index), out / str(index)
        folder.mkdir()
        try:
            result = child.do(job, folder, stages)
            stages.begin("")
        except F2IError as e:
            tell(events, {"job": index, "error": _failure(e)})
            traceback.print_exc()
            return e.exit_code
        (folder / RESULT).write_text(json.dumps(result | {"stages": stages.done, "tool_versions": job.tool_versions()}, indent=1))
        tell(events, {"job": index, "done": True})
    return 0


def _failure(error: F2IError) -> dict[str, object]:
    """An error as the parent needs it to raise the same again."""
    failure: dict[str, object] = {"message": str(error), "exit_code": error.exit_code}
    if isinstance(error, ToolchainError):
        failure |= {"component": error.component, "target": error.target, "stage": error.stage, "reason": error.reason}
    return failure


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
