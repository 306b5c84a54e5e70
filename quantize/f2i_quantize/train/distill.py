"""Training: a model from photos, with or without a teacher, on any number of processes.

    photos ──▶ crops ──▶ student ──▶ L1 + FFT-L1 to the photo
                   └───▶ teacher ──▶ L1 to its output + normalised L1 to its block outputs, or to its last latent

A run keeps everything beside ``out``, in ``<out>.run/``:

    options.json, data.json      what the run was asked to do, and the photos with their hashes
    log.jsonl                    one line per logged step and per evaluation
    state/                       to go on from (``resume``)
    best/                        the moving average of weights of the best evaluation, a checkpoint

``python -m f2i_quantize.train.distill OPTIONS.json`` runs the options of a file: what ``accelerate launch -m`` needs on several GPUs or nodes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from f2i_runtime.errors import UsageError
from f2i_runtime.files import check_replaceable
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from f2i_quantize.models import checkpoint, checkpoint_files
from f2i_quantize.models.checkpoint_files import CHECKPOINT_FOLDER
from f2i_quantize.models.differentiable import step_noise
from f2i_quantize.models.whole_model import F2IModel
from f2i_quantize.train.compiled import check_compiler
from f2i_quantize.train.crops import CropDataset, PhotoSet, batches, read_folder
from f2i_quantize.train.distill_options import DistillOptions
from f2i_quantize.train.freeze_norms import freeze_norms
from f2i_quantize.train.held_out import score_photos, upscaled_by
from f2i_quantize.train.prune import initialise_from
from f2i_quantize.train.run_folder import BEST, STATE, check_run_folder, has_state, run_folder, start_anew
from f2i_quantize.train.run_log import RunLog
from f2i_quantize.train.starting_weights import set_starting_weights
from f2i_quantize.train.trainee import Trainee, drawn_noise
from f2i_quantize.train.training_state import MovingAverage, Progress, cosine_rate, load_state, named_weights, save_state

if TYPE_CHECKING:
    from accelerate import Accelerator


NORM_CROPS = 256
"""Crops that the norms are measured on before they are frozen."""


@dataclass(frozen=True)
class DistillProgress:
    """The progress of a run, handed to ``progress`` at every logged step and evaluation."""

    step: int
    steps: int
    loss: float
    """Mean total loss since the last report."""
    learning_rate: float
    seconds: float
    """Wall time, over all parts of a resumed run."""
    validation_psnr_y: float | None
    """The PSNR-Y in dB when this report is an evaluation."""


@dataclass(frozen=True)
class DistillResult:
    """How a run ended."""

    out: Path
    sha256: str
    """The hash of the checkpoint at ``out``."""
    steps: int
    interrupted: bool
    """Ctrl-C came: the state is saved, and ``resume`` goes on; ``out`` is written all the same if there was an evaluation."""
    best_step: int
    best_psnr_y: float
    seconds: float
    photos: int
    skipped: tuple[tuple[str, str], ...]
    """Files that were not used, with reasons."""


def learning_rate(options: DistillOptions, step: int) -> float:
    """Returns the learning rate of optimizer step ``step`` (from 0): a linear warm-up, then a cosine to ``final_lr``."""
    return cosine_rate(step, options.steps, warmup=options.warmup, highest=options.lr, lowest=options.final_lr)


def load_models(options: DistillOptions) -> tuple[F2IModel, F2IModel | None]:
    """(student, teacher). A preset's student starts from the teacher's pruned weights where ``init`` says so, else from ``seed``.

    With ``freeze_norms`` the student still has its norms, which :func:`_frozen` measures, and is its own teacher where no other is given.
    """
    from f2i_quantize.models import presets

    teacher = checkpoint.load(options.teacher) if options.teacher else None
    if options.student in presets.PRESETS and options.init != "checkpoint" and not options.freeze_norms:
        student = presets.build(options.student, options.seed)
        set_starting_weights(student)
        if teacher and options.init == "prune":
            initialise_from(student, teacher)
    else:
        student = checkpoint.load(options.student)
    if options.freeze_norms and teacher is None:
        teacher = checkpoint.load(options.student)
    if teacher and teacher.config.scale != student.config.scale:
        raise UsageError(f"teacher enlarges by {teacher.config.scale}, student by {student.config.scale}; both must be equal")
    for model in (student, *([teacher] if teacher else [])):
        model.geometry().check_tile(options.crop)
    return student, teacher


def _frozen(student: F2IModel, photos: PhotoSet, options: DistillOptions) -> F2IModel:
    """The student with constants for its group norms, measured on crops of the training photos."""
    crops = CropDataset(photos.photos, options.crop, NORM_CROPS, options.seed, options.degradation)
    tiles = ((crops[k][0][None], step_noise(student, options.crop, 1, options.seed, k)) for k in range(NORM_CROPS))
    return freeze_norms(student, tiles, options.crop)


def distill(options: DistillOptions, progress: Callable[[DistillProgress], None] | None = None) -> DistillResult:
    """Train ``options.student`` and write the best checkpoint to ``options.out``.

    Raises UsageError on options or photos that cannot be trained with, CheckpointError on a state that cannot be resumed.
    A KeyboardInterrupt ends the run cleanly: the state is saved and the result says ``interrupted``.
    """
    from accelerate import Accelerator

    _check_output(options)
    if options.compile:
        check_compiler()
    # Autocast is entered by the run itself: accelerate keeps its precision for the whole process, and one process may train several models.
    accelerator = Accelerator(mixed_precision="no", cpu=options.device == "cpu", step_scheduler_with_optimizer=False)
    return _Run(options, accelerator, progress).run()


def _check_output(options: DistillOptions) -> None:
    """Raises UsageError when the run would write over what it has not written itself."""
    out, folder = options.out, run_folder(options.out)
    check_run_folder(folder)
    if os.path.lexists(out) and not options.resume:
        raise UsageError(f"{out}: it exists already; choose another folder, remove it, or go on with --resume")
    check_replaceable(out, CHECKPOINT_FOLDER)
    if os.path.lexists(out) and any(out.iterdir()) and not has_state(folder):
        raise UsageError(f"{out}: there is no run to go on with: {folder} holds no state; choose another folder or remove {out}")


class _Run:
    """State of one run."""

    def __init__(self, options: DistillOptions, accelerator: Accelerator, report: Callable[[DistillProgress], None] | None) -> None:
        self.options, self.accelerator, self.report = options, accelerator, report
        self.main: bool = accelerator.is_main_process
        self.folder = run_folder(options.out)
        found = read_folder(options.images, min_side=2 * options.crop, cache=options.cache, processes=options.processes)
        self.photos, self.validation = _split(options, found)
        self.student, self.teacher = load_models(options)
        if options.freeze_norms:
            self.student = _frozen(self.student, self.photos, options)
        self.weights = named_weights(self.student)
        for part in self.student.parts().values():
            part.train()
        for name, p in self.weights.items():
            p.requires_grad_(not name.endswith("mask_token") and name.split("/")[0] not in options.freeze)
        trainee = Trainee(self.student, self.teacher, options).to(accelerator.device)
        for pipeline in trainee._teacher:
            pipeline.to(accelerator.device)
        trained = [p for p in self.weights.values() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=options.lr, betas=options.betas, weight_decay=options.weight_decay, fused=True)
        self.average = MovingAverage(self.weights, options.ema)
        self.state = Progress()
        self.folder.mkdir(parents=True, exist_ok=True)
        if options.resume and has_state(self.folder):
            self.state = load_state(self.folder / STATE, self.average, self.optimizer, options.identity())
        elif self.main:
            start_anew(self.folder)
        if self.main and trainee.aim == "teacher" and self.teacher:
            self.validation = upscaled_by(self.teacher, self.validation, tile=options.evaluation_tile, device=accelerator.device)
        self.unchecked = options.compile
        self.trainee: Any = accelerator.prepare_model(trainee)
        self.trained = trained

    def run(self) -> DistillResult:
        options, interrupted = self.options, False
        if self.main:
            self._write_provenance()
        log = RunLog(self.folder, self.state.step, tensorboard=options.tensorboard) if self.main else None
        started = time.monotonic() - self.state.seconds
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        dataset = CropDataset(
            self.photos.photos, options.crop, options.steps * options.batch * world, options.seed, options.degradation, options.candidates
        )
        losses: list[dict[str, float]] = []
        try:
            for lr, hr in batches(dataset, options.batch, start=self.state.step, rank=rank, world=world, workers=options.workers):
                losses.append(self._step(lr, hr))
                self.state.seconds = time.monotonic() - started
                step = self.state.step
                last = step == options.steps
                if step % options.log_every == 0 or last:
                    self._report(log, losses, None)
                    losses = []
                if step % options.evaluate_every == 0 or last:
                    self._evaluate(log)
                if step % options.save_every == 0 or last:
                    self._save()
        except KeyboardInterrupt:
            interrupted = True
            self._save()
        finally:
            if log:
                log.close()
        return self._finish(interrupted)

    def _step(self, lr: Tensor, hr: Tensor) -> dict[str, float]:
        rate = learning_rate(self.options, self.state.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        lr, hr = (image.to(self.accelerator.device, memory_format=torch.channels_last) for image in (lr, hr))
        noise = self._noise(len(lr))
        if self.unchecked:
            # In a context of its own: autocast keeps the weights that it has cast until it is left.
            with self._arithmetic():
                self.accelerator.unwrap_model(self.trainee).check(lr, noise)
            self.unchecked = False
        with self._arithmetic():
            losses: dict[str, Tensor] = self.trainee(lr, hr, noise)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(losses["total"])
        norm = nn.utils.clip_grad_norm_(self.trained, self.options.clip)
        if torch.isfinite(norm):
            self.optimizer.step()
        self.state.step += 1
        self.average.update(self.state.step)
        return {name: float(loss.detach()) for name, loss in losses.items()} | {"gradient_norm": float(norm)}

    @contextlib.contextmanager
    def _arithmetic(self) -> Iterator[None]:
        device = self.accelerator.device.type
        # On the CPU, flash attention's backward pass over the few tokens of a crop costs several times what plain attention does.
        attention = sdpa_kernel(SDPBackend.MATH) if device == "cpu" else contextlib.nullcontext()
        with attention, torch.autocast(device, torch.bfloat16, enabled=self.options.amp):
            yield

    def _noise(self, count: int) -> Tensor | None:
        position = self.state.step * self.accelerator.num_processes + self.accelerator.process_index
        noise = drawn_noise(self.student, self.teacher, self.options, count, position)
        return None if noise is None else noise.to(self.accelerator.device)

    def _report(self, log: RunLog | None, losses: list[dict[str, float]], score: float | None) -> None:
        means = {name: sum(entry[name] for entry in losses) / len(losses) for name in losses[0]} if losses else {}
        if means and self.accelerator.num_processes > 1:
            shares = torch.tensor(list(means.values()), device=self.accelerator.device)
            means = dict(zip(means, self.accelerator.reduce(shares, "mean").tolist(), strict=True))
        if not log:
            return
        rate = learning_rate(self.options, max(0, self.state.step - 1))
        if score is None:
            log.write({"step": self.state.step, "learning_rate": rate, **means, "seconds": round(self.state.seconds, 1)})
        else:
            log.write({"step": self.state.step, "validation_psnr_y": score, "seconds": round(self.state.seconds, 1)})
        if self.report:
            self.report(DistillProgress(self.state.step, self.options.steps, means.get("total", math.nan), rate, self.state.seconds, score))

    def _evaluate(self, log: RunLog | None) -> None:
        """Score the averaged weights and keep them if they are the best so far. On the main process; the others wait for it."""
        if self.main and self.validation.photos:
            self.average.swap()
            try:
                score = score_photos(
                    self.student, self.validation.photos, tile=self.options.evaluation_tile, device=self.accelerator.device
                )
                if score > self.state.best_score:
                    self.state.best_score, self.state.best_step = score, self.state.step
                    self._write_checkpoint(self.folder / BEST)
            finally:
                self.average.swap()
            self._report(log, [], score)
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        if self.main:
            save_state(self.folder / STATE, self.average, self.optimizer, self.state, self.options.identity())
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(self, folder: Path) -> None:
        trained = replace(self.student, config=self.student.config.model_copy(update={"trained": True}))
        checkpoint.save(trained, folder, dtype=getattr(torch, self.options.dtype), replace=CHECKPOINT_FOLDER)

    def _write_provenance(self) -> None:
        def write(name: str, content: Any) -> None:
            (self.folder / name).write_text(json.dumps(content, indent=1, default=str) + "\n")

        write(
            "options.json",
            self.options.model_dump(mode="json") | {"processes_in_run": self.accelerator.num_processes, "torch": torch.__version__},
        )
        used = [
            {"use": use, "name": p.name, "sha256": p.sha256}
            for use, found in (("train", self.photos), ("validate", self.validation))
            for p in found.photos
        ]
        write("data.json", {"photos": used, "skipped": [asdict(s) for s in self.photos.skipped]})

    def _finish(self, interrupted: bool) -> DistillResult:
        out, best = self.options.out, self.folder / BEST
        if self.main and not (interrupted and not best.is_dir()):
            if not best.is_dir():
                self.average.swap()
                self._write_checkpoint(best)
            checkpoint.copy_checkpoint(best, out, replace=CHECKPOINT_FOLDER)
        self.accelerator.wait_for_everyone()
        digest = checkpoint_files.checkpoint_sha256(out) if out.is_dir() else ""
        skipped = tuple((s.name, s.reason) for s in self.photos.skipped)
        state = self.state
        return DistillResult(
            out, digest, state.step, interrupted, state.best_step, state.best_score, state.seconds, len(self.photos.photos), skipped
        )


def _split(options: DistillOptions, found: PhotoSet) -> tuple[PhotoSet, PhotoSet]:
    """(training, validation) photos: a folder of its own, or some of the training folder held out."""
    if options.validation:
        return found, read_folder(options.validation, cache=options.cache, processes=options.processes)
    if options.holdout >= len(found.photos):
        raise UsageError(
            f"{options.images}: {len(found.photos)} usable photos, of which {options.holdout} are to be held out; "
            "give more photos or lower the holdout"
        )
    return found.split(options.holdout)


if __name__ == "__main__":
    distill(DistillOptions.model_validate_json(Path(sys.argv[1]).read_text()))
