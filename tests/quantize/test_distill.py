"""Training: exact resume after a kill, two processes, pruning, losses, and a student that learns."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from f2i_quantize.models import checkpoint, presets
from f2i_quantize.models.differentiable import Pipeline
from f2i_quantize.train.compiled import check_gradients
from f2i_quantize.train.distill import DistillOptions, distill, learning_rate
from f2i_quantize.train.distill_options import parse_options
from f2i_quantize.train.encoder_distill import EncoderOptions, distill_encoder, distill_encoder_checkpoint, load_encoder
from f2i_quantize.train.losses import TokenDistance, feature_l1, fft_l1, token_loss
from f2i_quantize.train.prune import initialise_from, kept
from f2i_quantize.train.trainee import Trainee
from f2i_runtime.errors import CheckpointError, ToolchainError, UsageError
from PIL import Image
from repository import F2I, ROOT, heeding_ctrl_c
from skimage import data as photos
from transformers import Dinov2Config, Dinov2Model

DYNAMO = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a .functools.lru_cache.:UserWarning")
"""What torch says of diffusers' code while it compiles it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, name in enumerate(("astronaut", "coffee", "rocket")):
        Image.fromarray(getattr(photos, name)()[40:200, 60:220]).save(folder / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    """Sums are taken in another order on another number of threads, here and in the processes that `launch` starts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def options(folder, out, **changes):
    given = {
        "student": "tiny",
        "steps": 8,
        "batch": 2,
        "crop": 32,
        "holdout": 1,
        "evaluation_tile": 32,
        "evaluate_every": 4,
        "save_every": 4,
    }
    return DistillOptions(**{"images": folder, "out": out, "warmup": 2, "log_every": 1, "device": "cpu", **given, **changes})


def launch(path, *command):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        [sys.executable, *command, "-m", "f2i_quantize.train.distill", str(path)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def log_of(out):
    return [json.loads(line) for line in (out.with_name(out.name + ".run") / "log.jsonl").read_text().splitlines()]


def losses_of(out):
    return [(entry["step"], entry["total"]) for entry in log_of(out) if "total" in entry]


def test_a_killed_run_resumes_to_the_same_checkpoint(folder, tmp_path):
    whole = distill(options(folder, tmp_path / "whole", steps=60, evaluate_every=30))
    path = tmp_path / "options.json"
    path.write_text(options(folder, tmp_path / "cut", steps=60, evaluate_every=30).model_dump_json())
    process = launch(path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "cut.run" / "state").is_dir() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "cut").exists()
    resumed = distill(options(folder, tmp_path / "cut", steps=60, evaluate_every=30, resume=True))
    assert resumed.sha256 == whole.sha256
    assert losses_of(tmp_path / "cut") == losses_of(tmp_path / "whole")
    assert not resumed.interrupted and resumed.steps == 60


def test_ctrl_c_saves_and_resumes(folder, tmp_path):
    def stop(progress):
        if progress.step == 5:
            raise KeyboardInterrupt

    whole = distill(options(folder, tmp_path / "whole"))
    first = distill(options(folder, tmp_path / "cut"), stop)
    assert first.interrupted and first.steps == 5
    assert distill(options(folder, tmp_path / "cut", resume=True)).sha256 == whole.sha256


def test_resume_refuses_other_options_and_names_them(folder, tmp_path):
    distill(options(folder, tmp_path / "run"))
    with pytest.raises(CheckpointError, match=r"batch: 2 then, 3 now"):
        distill(options(folder, tmp_path / "run", batch=3, resume=True))
    with pytest.raises(UsageError, match="exists already"):
        distill(options(folder, tmp_path / "run"))


def test_two_processes_train_as_one_with_twice_the_batch(folder, tmp_path):
    path = tmp_path / "options.json"
    path.write_text(options(folder, tmp_path / "two", steps=3, batch=2, amp=False, dtype="float32").model_dump_json())
    # `accelerate launch --cpu` starts one process whatever is asked of it; torchrun's environment is what accelerate reads.
    process = launch(path, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output.decode()[-2000:]
    one = distill(options(folder, tmp_path / "one", steps=3, batch=4, amp=False, dtype="float32"))
    assert losses_of(tmp_path / "two") == [(step, pytest.approx(loss, rel=1e-4)) for step, loss in losses_of(tmp_path / "one")]
    # Adam moves a weight whose gradient is nothing but rounding by up to the learning rate, so single weights differ, their mean does not.
    pairs = zip(checkpoint.load(tmp_path / "two").unet.parameters(), checkpoint.load(one.out).unet.parameters(), strict=True)
    assert max(float((a - b).abs().mean()) for a, b in pairs) < 1e-4
    assert json.loads((tmp_path / "two.run" / "options.json").read_text())["processes_in_run"] == 2


def test_training_starts_at_bicubic_and_improves(folder, tmp_path):
    """One crop, seen in its eight symmetries, is soon known better than bicubic knows it."""
    (tmp_path / "one").mkdir()
    Image.fromarray(photos.brick()[:64, :64]).convert("RGB").save(tmp_path / "one" / "brick.png")
    given = {"steps": 150, "batch": 2, "warmup": 10, "evaluate_every": 50, "holdout": 0, "validation": tmp_path / "one", "ema": 0.9}
    trained = distill(options(tmp_path / "one", tmp_path / "trained", lr=4e-3, **given))
    idle = distill(options(tmp_path / "one", tmp_path / "idle", lr=1e-12, final_lr=0, **{**given, "steps": 2}))
    l1 = {run.out.name: [entry["l1"] for entry in log_of(run.out) if "l1" in entry] for run in (trained, idle)}
    assert l1["trained"][0] == l1["idle"][0]
    assert l1["trained"][-1] < 0.97 * l1["idle"][-1]
    assert trained.best_psnr_y > idle.best_psnr_y + 0.2
    scores = {entry["step"]: entry["validation_psnr_y"] for entry in log_of(trained.out) if "validation_psnr_y" in entry}
    assert trained.best_psnr_y == pytest.approx(max(scores.values()), abs=1e-3) == pytest.approx(scores[trained.best_step], abs=1e-3)


def test_a_teacher_adds_its_losses_and_the_student_starts_from_it(folder, tmp_path):
    checkpoint.save(presets.build("tiny", 5), tmp_path / "teacher")
    distill(options(folder, tmp_path / "student", steps=2, teacher=str(tmp_path / "teacher")))
    assert {"l1", "fft", "teacher", "feature"} <= set(log_of(tmp_path / "student")[0])


def test_pruning_by_nothing_is_the_teacher_itself():
    teacher, student = presets.build("tiny", 1), presets.build("tiny", 2)
    assert initialise_from(student, teacher) == ()
    lr = torch.rand(1, 3, 32, 32)
    assert torch.equal(Pipeline(teacher, 32)(lr), Pipeline(student, 32)(lr))


def test_pruning_keeps_whole_channels_through_the_skips(monkeypatch):
    """Half as wide and half as deep: all but attention finds its counterpart, and the same channels stay on both sides of a layer."""
    table = presets.PRESETS["tiny"]
    unet = {**table.unet, "block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 2}
    wide = presets.Preset(table.config, unet, table.encoder, table.codec)
    monkeypatch.setitem(presets.PRESETS, "wide", wide)
    teacher, student = presets.build("wide", 1), presets.build("tiny", 2)
    left = initialise_from(student, teacher)
    assert not [name for name in left if "attentions" not in name]
    assert torch.equal(student.unet.conv_in.weight, teacher.unet.conv_in.weight[kept(16, 8)])
    # The last up block joins 32 channels (now 16) coming up with a skip of 16 (now 8).
    ours, theirs = (model.unet.up_blocks[1].resnets[0].conv1.weight for model in (student, teacher))
    columns = torch.cat([kept(32, 16), 32 + kept(16, 8)])
    assert torch.equal(ours, theirs[kept(16, 8)][:, columns])


def test_losses_are_zero_on_equals_and_grow_with_difference():
    a, b = torch.rand(2, 4, 8, 8), torch.rand(2, 4, 8, 8)
    assert fft_l1(a, a) < 1e-5 < fft_l1(a, b)
    assert feature_l1({"x": a}, {"x": a}) == 0 < feature_l1({"x": a}, {"x": b})
    assert feature_l1({"x": a[:, :2]}, {"x": b}) > 0
    tokens = torch.randn(2, 5, 16)
    assert token_loss(tokens, tokens).abs() < 1e-5
    assert torch.allclose(feature_l1({"x": a}, {"x": b}), feature_l1({"x": a * 7}, {"x": b * 7}), rtol=1e-3)


def test_schedule_warms_up_and_ends_at_the_final_rate(folder, tmp_path):
    given = options(folder, tmp_path / "x", steps=100, warmup=10, lr=1e-3, final_lr=1e-5)
    rates = [learning_rate(given, step) for step in range(101)]
    assert rates[0] == pytest.approx(1e-4) and max(rates) == rates[9] == rates[10] == 1e-3
    assert rates[100] == pytest.approx(1e-5) and all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_encoder_learns_a_dinov2_folder_of_the_real_shape(folder, tmp_path):
    """A Hugging Face folder with DINOv2-S/14's widths (random weights, 2 of its 12 layers to be quick) loads unchanged and teaches."""
    torch.manual_seed(0)
    shape = Dinov2Config(hidden_size=384, num_hidden_layers=2, num_attention_heads=6, image_size=518, patch_size=14)
    Dinov2Model(shape).save_pretrained(tmp_path / "dino")
    student = presets.build("tiny", 0)
    wanted = EncoderOptions(images=folder, steps=30, batch=4, crop=64, lr=3e-3)
    losses = distill_encoder(student, load_encoder(tmp_path / "dino"), wanted)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    with pytest.raises(CheckpointError, match="not a DINOv2 folder"):
        load_encoder(tmp_path / "absent")


def dinov2(folder):
    """A Hugging Face DINOv2 folder with random weights, small."""
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=70, patch_size=14)).save_pretrained(
        folder
    )
    return folder


def test_an_interrupted_encoder_run_goes_on_to_the_same_weights(folder, tmp_path):
    teacher = dinov2(tmp_path / "dino")
    wanted = EncoderOptions(images=folder, steps=6, batch=2, crop=32)
    distill_encoder_checkpoint("tiny", teacher, tmp_path / "whole", wanted, resume=False)

    def stop(step, _loss):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill_encoder_checkpoint("tiny", teacher, tmp_path / "broken", wanted, resume=False, progress=stop)
    assert not (tmp_path / "broken").exists()
    distill_encoder_checkpoint("tiny", teacher, tmp_path / "broken", wanted, resume=True)
    whole, broken, before = (checkpoint.load(source) for source in (tmp_path / "whole", tmp_path / "broken", "tiny"))
    for name, p in whole.feature_encoder.named_parameters():
        assert torch.equal(p, dict(broken.feature_encoder.named_parameters())[name]), name
    assert not torch.equal(next(whole.feature_encoder.parameters()), next(before.feature_encoder.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(whole.unet.parameters(), before.unet.parameters(), strict=True))


def test_the_command_teaches_an_encoder(folder, tmp_path):
    given = [
        "distill",
        "--images",
        str(folder),
        "--student",
        "tiny",
        "--encoder",
        str(dinov2(tmp_path / "dino")),
        "--out",
        str(tmp_path / "out"),
    ]
    command = [F2I, *given, "--steps", "2", "--batch", "1", "--crop", "32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "token loss" in done.stdout, done.stderr
    assert checkpoint.load(tmp_path / "out").config.name == "tiny"
    refused = subprocess.run([*command, "--teacher", "tiny"], capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2 and "--encoder trains the feature encoder alone" in refused.stderr


def test_a_perceptual_stage_trains_on_what_a_dinov2_sees(folder, tmp_path):
    teacher = dinov2(tmp_path / "dino")
    torch.manual_seed(1)
    photo = torch.rand(1, 3, 56, 56)
    image = (photo + 0.2 * torch.randn_like(photo)).requires_grad_()
    distance = TokenDistance(load_encoder(teacher), presets.build("tiny", 0).config)
    [before] = torch.autograd.grad(first := distance(image, photo), image)
    with torch.no_grad():
        assert distance(image - 20 * before, photo) < first and distance(photo, photo) < 1e-5
    runs = {"with": {"perceptual": teacher}, "without": {}}
    for name, change in runs.items():
        distill(options(folder, tmp_path / name, steps=2, **change))
    assert all(entry["perceptual"] > 0 for entry in log_of(tmp_path / "with") if "total" in entry)
    assert losses_of(tmp_path / "with")[0] > losses_of(tmp_path / "without")[0]


def test_the_command_trains_stops_on_ctrl_c_and_goes_on(folder, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [F2I, "distill", "--images", str(folder), "--out", str(tmp_path / "out"), "--student", "tiny"]
    command += ["--steps", "40", "--batch", "2", "--crop", "32"]
    for setting in ("holdout=1", "evaluation_tile=32", "save_every=5", "device=cpu", "evaluate_every=20"):
        command += ["--set", setting]
    with heeding_ctrl_c():
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out.run" / "state").is_dir() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "run the same command again" in errors and "Traceback" not in errors
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, env=environment, timeout=240)
    assert again.returncode == 0, again.stderr
    assert "best at step" in again.stdout and "PSNR-Y" in again.stderr
    assert checkpoint.load(tmp_path / "out").config.name == "tiny"
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2 and "exists already" in refused.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [(["foo=1"], "option foo is '1'"), (["weights"], "expected NAME=VALUE"), (["weights.fft=-1"], "option weights.fft is '-1'")],
)
def test_options_that_cannot_be_are_named(folder, tmp_path, settings, message):
    with pytest.raises(UsageError) as caught:
        parse_options({"images": folder, "out": tmp_path / "x"}, settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_compiling_without_a_compiler_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match="there is no C\\+\\+ compiler 'no-such-compiler'; install one"):
        distill(options(folder, tmp_path / "x", compile=True))
    assert list(tmp_path.iterdir()) == []


def test_a_compiled_student_whose_gradients_are_others_is_refused():
    """No loss shows it: what is compiled computes the same and teaches nothing below the first level."""
    model = presets.build("tiny", 3)
    student, lr = Pipeline(model, 32), torch.rand(1, 3, 32, 32)
    for weight in student.parameters():
        weight.requires_grad_(True)

    def cut(*inputs):
        def parted(_, given, named):
            return given, named | {"hidden_states": named["hidden_states"].detach()}

        hook = model.unet.up_blocks[-1].register_forward_pre_hook(parted, with_kwargs=True)
        try:
            return student.tensors(*inputs)
        finally:
            hook.remove()

    before = [weight.detach().clone() for weight in student.parameters()]
    check_gradients(student.tensors, student.tensors, list(student.parameters()), (lr, None))
    with pytest.raises(
        ToolchainError, match=r"compiling of the student failed: \d+ of \d+ gradients are others than .*; train with compile=false"
    ):
        check_gradients(cut, student.tensors, list(student.parameters()), (lr, None))
    assert all(torch.equal(weight, old) for weight, old in zip(student.parameters(), before, strict=True))


def test_blocks_of_a_compiled_student_are_not_compared(folder, tmp_path):
    """What a hook keeps of a compiled model has no gradient."""
    checkpoint.save(presets.build("tiny", 5), tmp_path / "teacher")
    with pytest.raises(UsageError, match=r"give --set weights[.]feature=0, or leave it out"):
        distill(options(folder, tmp_path / "x", compile=True, teacher=str(tmp_path / "teacher")))
    assert not (tmp_path / "x.run").exists()


@pytest.mark.slow
@DYNAMO
@pytest.mark.parametrize("preset", ["tiny", "nano"])
def test_a_compiled_student_has_the_gradients_of_one_that_is_not(folder, tmp_path, preset):
    """In bfloat16 with channels last, as training has it: torch once compiled an interpolation whose backward pass gave zero."""
    trainee = Trainee(presets.build(preset, 3), None, options(folder, tmp_path / "x", compile=True))
    for weight in trainee.parameters():
        weight.requires_grad_(True)
    lr = torch.rand(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        trainee.check(lr, None)


@pytest.mark.slow
@DYNAMO
@pytest.mark.parametrize("taught", [False, True])
def test_a_compiled_student_learns_as_one_that_is_not(folder, tmp_path, taught):
    checkpoint.save(presets.build("tiny", 5), tmp_path / "teacher")
    more = {"teacher": str(tmp_path / "teacher"), "weights": {"feature": 0}} if taught else {}
    for name, compiled in (("plain", False), ("compiled", True)):
        distill(options(folder, tmp_path / name, steps=4, amp=False, compile=compiled, **more))
    plain, compiled = (
        [json.loads(line) for line in (tmp_path / f"{name}.run" / "log.jsonl").read_text().splitlines()] for name in ("plain", "compiled")
    )
    losses = [[line["total"] for line in lines if "total" in line] for lines in (plain, compiled)]
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], rel=1e-3)
