"""Step distillation: a student of one step learns where a teacher of eight ends."""

import dataclasses
import json

import pytest
import torch
from f2i_quantize.models import checkpoint
from f2i_quantize.models.config import Step
from f2i_quantize.models.differentiable import Pipeline
from f2i_quantize.train.distill import distill
from f2i_quantize.train.distill_options import DistillOptions, parse_options
from f2i_quantize.train.one_step import main, one_step
from f2i_runtime.errors import UsageError
from f2i_runtime.photo.samples import sample_tiles
from model_zoo import latent_model, small_kl
from PIL import Image
from skimage import data as photos

STEPS = tuple(Step(timestep=999.0 * (1 - k / 8), keep=1.0, add=-0.5 / 8) for k in range(8))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A latent model that starts from noise and takes eight steps, with random weights that make every step turn the latent."""
    model = latent_model(small_kl(), noise=True)
    torch.manual_seed(3)
    for name, p in model.unet.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(p, std=0.25)
    model = dataclasses.replace(model, config=model.config.model_copy(update={"steps": STEPS}))
    folder = tmp_path_factory.mktemp("step") / "teacher"
    checkpoint.save(model, folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut", "coffee"):
        Image.fromarray(getattr(photos, name)()[40:200, 60:220]).save(folder / f"{name}.png")
    return folder


def options(teacher, images, out, **changes):
    given = {
        "steps": 60,
        "batch": 2,
        "crop": 32,
        "holdout": 1,
        "warmup": 5,
        "lr": 2e-3,
        "evaluate_every": 60,
        "amp": False,
        "dtype": "float32",
    }
    start = out.with_name("start")
    assert main([str(teacher), str(start)]) == 0
    fixed = {"images": images, "out": out, "teacher": str(teacher), "student": str(start), "device": "cpu", "evaluation_tile": 32}
    return DistillOptions(**fixed, **{**given, **changes})


@torch.no_grad()
def ends(model, lr, noise):
    """(latent after each step, the photo)."""
    pipeline = Pipeline(model, 32)
    tensors = pipeline.tensors(lr, noise)
    return [tensors[f"latent_{k + 1}"] for k in range(len(model.config.steps))], tensors["sr"]


def distance(a, b):
    return float((a - b).norm() / b.norm())


def test_the_student_ends_nearer_to_the_teacher_than_its_own_first_step_and_than_one_long_step(teacher, images, tmp_path):
    result = distill(options(teacher, images, tmp_path / "student", freeze=("codec", "feature_encoder")))
    many, student = checkpoint.load(teacher), checkpoint.load(tmp_path / "student")
    assert len(student.config.steps) == 1 and result.best_psnr_y > 0
    lr = torch.cat([torch.from_numpy(tile) for _, tile in sample_tiles(32, 4, seed=9)])
    noise = torch.randn(4, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    steps, photo = ends(many, lr, noise)
    [latent], made = ends(student, lr, noise)
    [jumped], jump = ends(one_step(many), lr, noise)
    first = dataclasses.replace(many, config=many.config.model_copy(update={"steps": STEPS[:1]}))
    own = distance(ends(first, lr, noise)[1], photo)
    assert distance(latent, steps[-1]) < min(0.5 * distance(steps[0], steps[-1]), 0.9 * distance(jumped, steps[-1]))
    assert distance(made, photo) < min(0.5 * own, 0.9 * distance(jump, photo))
    for name in ("codec", "feature_encoder"):
        before, after = many.parts()[name].state_dict(), student.parts()[name].state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before)
    assert not torch.equal(many.unet.conv_in.weight, student.unet.conv_in.weight)
    log = [json.loads(line) for line in (tmp_path / "student.run" / "log.jsonl").read_text().splitlines()]
    assert set(log[0]) >= {"teacher", "latent"} and not {"l1", "fft", "feature"} & set(log[0])


def test_the_photo_is_aimed_at_where_that_is_asked_for(teacher, images, tmp_path):
    distill(options(teacher, images, tmp_path / "student", steps=2, aim="photo"))
    log = json.loads((tmp_path / "student.run" / "log.jsonl").read_text().splitlines()[0])
    assert {"l1", "fft", "teacher", "latent"} <= set(log)


def test_one_long_step_goes_as_far_as_all_steps_of_a_constant_prediction():
    model = latent_model(small_kl(), steps=3)
    only = one_step(model).config.steps[0]
    z, u = 2.0, 0.7
    for step in model.config.steps:
        z = step.keep * z + step.add * u
    assert only.keep * 2.0 + only.add * u == pytest.approx(z) and only.timestep == model.config.steps[0].timestep
    with pytest.raises(UsageError, match="takes one step already"):
        one_step(latent_model(small_kl()))


def test_lists_are_given_with_commas_and_their_items_are_checked():
    options = parse_options({"images": ".", "out": "out"}, ["freeze=codec,unet", "betas=0.8,0.9"])
    assert options.freeze == ("codec", "unet") and options.betas == (0.8, 0.9)
    with pytest.raises(UsageError, match=r"option freeze\.0 is 'decoder': Input should be 'unet'"):
        parse_options({"images": ".", "out": "out"}, ["freeze=decoder"])
