"""Checkpoints: what is written is what is read, and every way a folder can be wrong is one line that names the place."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from f2i_quantize.models import checkpoint, checkpoint_files, presets
from f2i_quantize.models.checkpoint_files import checkpoint_sha256
from f2i_quantize.models.description import describe
from f2i_runtime.errors import CheckpointError, UsageError
from hub_cache import as_snapshot
from model_zoo import latent_model, small_kl, small_tiny
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    checkpoint.save(presets.build("tiny", 3), folder)
    return folder


@pytest.fixture
def damaged(saved, tmp_path):
    copy = tmp_path / "ckpt"
    shutil.copytree(saved, copy)
    return copy


def test_what_is_saved_is_what_is_loaded(saved):
    original, loaded = presets.build("tiny", 3), checkpoint.load(saved)
    assert loaded.config == original.config
    for name, part in original.parts().items():
        other = loaded.parts()[name].state_dict()
        assert all(torch.equal(v, other[k]) for k, v in part.state_dict().items())
        assert not any(p.requires_grad for p in loaded.parts()[name].parameters())
    assert not [p for p in saved.rglob("*") if p.suffix in {".bin", ".pt", ".ckpt"}]


@pytest.mark.parametrize("name", ["tiny", "nano", "mobile"])
def test_presets_keep_their_promises(name):
    limits = {"tiny": 100_000, "nano": 6_000_000, "mobile": 60_000_000}
    assert presets.build(name).parameters() <= limits[name]


def test_the_bundled_model_loads_and_is_small():
    model = checkpoint.load("nano")
    assert model.config.trained and not checkpoint_files.is_preset("nano") and checkpoint_files.is_preset("mobile")
    assert model.parameters() <= 6_000_000
    assert sum(p.stat().st_size for p in checkpoint_files.BUNDLED.rglob("*.safetensors")) <= 25_000_000


@pytest.mark.parametrize("codec", [small_kl, small_tiny])
@pytest.mark.parametrize("registers", [False, True])
def test_latent_families_load(tmp_path, codec, registers):
    model = latent_model(codec(), registers=registers, steps=3, noise=True)
    checkpoint.save(model, tmp_path / "m", dtype=torch.float16)
    loaded = checkpoint.load(tmp_path / "m")
    assert isinstance(loaded.codec, (AutoencoderKL, AutoencoderTiny)) and len(loaded.config.steps) == 3
    assert isinstance(loaded.feature_encoder, Dinov2WithRegistersModel) == registers
    assert all(p.dtype == torch.float32 for part in loaded.parts().values() for p in part.parameters())


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize(("config", "model"), [(Dinov2Config, Dinov2Model), (Dinov2WithRegistersConfig, Dinov2WithRegistersModel)])
def test_a_folder_that_transformers_wrote_loads_unchanged(damaged, config, model, swiglu):
    """As a DINOv2 checkpoint comes from its own library, under the names it is published with: no conversion, only put in place."""
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 56, "patch_size": 14}
    encoder = model(config(**shape, use_swiglu_ffn=swiglu))
    shutil.rmtree(damaged / "feature_encoder")
    encoder.save_pretrained(damaged / "feature_encoder")
    edit(damaged, "model_index.json", feature_encoder=["transformers", model.__name__])
    loaded = checkpoint.load(damaged)
    assert all(torch.equal(v, loaded.feature_encoder.state_dict()[k]) for k, v in encoder.state_dict().items())
    checkpoint.save(loaded, damaged.with_name("again"))
    back = model.from_pretrained(damaged.with_name("again") / "feature_encoder")
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in encoder.state_dict().items())


def change_weights(folder, change):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def edit(folder, name, **changes):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


WRONG = {
    "missing key": (lambda f: change_weights(f, lambda t: t.pop("conv_in.bias")), "'conv_in.bias' is missing, expected shape (8,)"),
    "strange key": (lambda f: change_weights(f, lambda t: t.update(extra=torch.zeros(2))), "'extra' of shape (2,) is not part"),
    "wrong shape": (
        lambda f: change_weights(f, lambda t: t.update({"conv_in.bias": torch.zeros(9)})),
        "'conv_in.bias' has shape (9,), expected (8,)",
    ),
    "NaN": (
        lambda f: change_weights(f, lambda t: t.update({"conv_in.bias": torch.full((8,), torch.nan)})),
        "'conv_in.bias' holds NaN or infinite",
    ),
    "cut file": (
        lambda f: (f / "unet/diffusion_pytorch_model.safetensors").write_bytes(
            (f / "unet/diffusion_pytorch_model.safetensors").read_bytes()[:5000]
        ),
        "not a readable safetensors file",
    ),
    "pickle": (
        lambda f: (f / "unet/diffusion_pytorch_model.safetensors").rename(f / "unet/diffusion_pytorch_model.bin"),
        "pickled weights are never read",
    ),
    "no index": (lambda f: (f / "model_index.json").unlink(), "model_index.json: missing; a checkpoint is"),
    "index no JSON": (lambda f: (f / "model_index.json").write_text("{"), "not readable as JSON"),
    "index a list": (lambda f: (f / "model_index.json").write_text("[]"), "holds a list, expected a JSON object"),
    "unknown scalar": (lambda f: edit(f, "model_index.json", scle=2), "scle: Extra inputs are not permitted"),
    "unknown class": (
        lambda f: edit(f, "model_index.json", codec=["diffusers", "VQModel"]),
        "codec is of class 'VQModel', expected one of PixelCodec, AutoencoderKL, AutoencoderTiny",
    ),
    "broken config": (lambda f: edit(f, "unet/config.json", norm_num_groups=3), "cannot be built from it"),
    "unknown block": (
        lambda f: edit(f, "unet/config.json", down_block_types=["NoBlock", "NoBlock"]),
        "key 'down_block_types' is ['NoBlock', 'NoBlock'], expected DownBlock2D or",
    ),
    "projector too wide": (lambda f: edit(f, "projector/config.json", in_features=17), "has shape (16, 16), expected (16, 17)"),
    "wrong codec": (lambda f: edit(f, "codec/config.json", factor=4), "expected 48, 192 for this codec"),
    "noise without photo": (lambda f: edit(f, "model_index.json", noise=True), "needs concat_lr"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(damaged, case):
    damage, message = WRONG[case]
    damage(damaged)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(damaged)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_is_overwritten(saved):
    with pytest.raises(UsageError, match="exists already"):
        checkpoint.save(presets.build("tiny"), saved)


def test_hash_changes_with_a_weight_and_not_with_the_place(saved, damaged):
    same = checkpoint_files.checkpoint_sha256(saved)
    assert checkpoint_files.checkpoint_sha256(damaged) == same
    change_weights(damaged, lambda t: t["conv_in.bias"].add_(1e-3))
    assert checkpoint_files.checkpoint_sha256(damaged) != same


def test_parts_that_are_not_wanted_come_without_weights(tmp_path):
    checkpoint.save(checkpoint.load("tiny"), tmp_path / "c")
    model = checkpoint.load(tmp_path / "c", only=("unet",))
    assert not any(p.is_meta for p in model.unet.parameters())
    assert all(p.is_meta for part in (model.feature_encoder, model.projector) for p in part.parameters())
    assert checkpoint.load("tiny", only=()).parameters() == checkpoint.load("tiny").parameters() == model.parameters()


def shard(folder, name, variant="", count=3):
    """Weights written as the libraries write a large part: ``count`` files and an index."""
    tensors = load_file(folder / f"{name}.safetensors")
    (folder / f"{name}.safetensors").unlink()
    files = [f"{name}{variant}-{k + 1:05}-of-{count:05}.safetensors" for k in range(count)]
    keys = sorted(tensors)
    for k, file in enumerate(files):
        save_file({key: tensors[key] for key in keys[k::count]}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": {key: files[k % count] for k, key in enumerate(keys)}}
    (folder / f"{name}.safetensors.index{variant}.json").write_text(json.dumps(index))


def variant(folder, name, mark):
    (folder / f"{name}.safetensors").rename(folder / f"{name}{mark}.safetensors")


def link(folder):
    """The folder becomes a link to the snapshot of a hub's cache."""
    snapshot = as_snapshot(folder, folder.parent / "hub")
    shutil.rmtree(folder)
    folder.symlink_to(snapshot)


U, D = "diffusion_pytorch_model", "model"
HUB = {
    "sharded": lambda f: (shard(f / "unet", U), shard(f / "feature_encoder", D), shard(f / "projector", D, count=1)),
    "fp16": lambda f: (variant(f / "unet", U, ".fp16"), variant(f / "feature_encoder", D, ".fp16")),
    "bf16": lambda f: variant(f / "unet", U, ".bf16"),
    "sharded fp16": lambda f: (shard(f / "unet", U, ".fp16"), shard(f / "feature_encoder", D, ".fp16")),
    "both, the full one is read": lambda f: save_file({"x": torch.zeros(1)}, f / "unet" / f"{U}.fp16.safetensors"),
    "scheduler": lambda f: edit(f, "model_index.json", scheduler=["diffusers", "DDIMScheduler"], steps=[{"timestep": 1.0}]),
    "no scheduler": lambda f: edit(f, "model_index.json", scheduler=[None, None], safety_checker=[None, None]),
    "snapshot": link,
}


@pytest.mark.parametrize("case", HUB)
def test_folders_as_hubs_hold_them(saved, damaged, case):
    HUB[case](damaged)
    loaded, original = checkpoint.load(damaged), checkpoint.load(saved)
    assert loaded.config == original.config and describe(damaged).parameters == describe(saved).parameters
    for name, part in original.parts().items():
        assert all(torch.equal(v, loaded.parts()[name].state_dict()[k]) for k, v in part.state_dict().items())
    checkpoint.save(loaded, damaged.with_name("again"))
    assert checkpoint_sha256(damaged.with_name("again")) == checkpoint_sha256(saved)


def test_a_large_part_that_diffusers_wrote_in_shards_loads(damaged):
    unet = checkpoint.load(damaged).unet
    shutil.rmtree(damaged / "unet")
    unet.save_pretrained(damaged / "unet", max_shard_size="100KB", variant="fp16")
    assert len(list((damaged / "unet").glob("*.safetensors"))) > 1
    again = checkpoint.load(damaged).unet.state_dict()
    assert all(torch.equal(v, again[k]) for k, v in unet.state_dict().items())


def sharded_index(folder, change):
    shard(folder / "unet", U)
    path = folder / "unet" / f"{U}.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


WRONG_HUB = {
    "lost shard": (
        lambda f: (shard(f / "unet", U), (f / "unet" / f"{U}-00002-of-00003.safetensors").unlink()),
        "00002-of-00003.safetensors: missing; diffusion_pytorch_model.safetensors.index.json names it",
    ),
    "wrong place": (lambda f: sharded_index(f, lambda m: m.update({"conv_in.bias": m["conv_in.weight"]})), "key 'conv_in.bias' is in"),
    "outside": (lambda f: sharded_index(f, lambda m: m.update({"conv_in.bias": "../x.safetensors"})), "names '../x.safetensors', expected"),
    "absolute": (lambda f: sharded_index(f, lambda m: m.update({"conv_in.bias": "/etc/passwd"})), "names '/etc/passwd', expected"),
    "twice": (
        lambda f: (
            shard(f / "unet", U),
            shutil.copy(f / "unet" / f"{U}-00001-of-00003.safetensors", f / "unet" / f"{U}-00002-of-00003.safetensors"),
        ),
        "is in diffusion_pytorch_model-00001-of-00003.safetensors as well",
    ),
    "empty index": (lambda f: (shard(f / "unet", U), edit(f, f"unet/{U}.safetensors.index.json", weight_map={})), "it has no weight_map"),
    "other variant": (lambda f: variant(f / "unet", U, ".ema"), "rename the one that is wanted to diffusion_pytorch_model.safetensors"),
    "scheduler alone": (
        lambda f: edit_out(f, "model_index.json", "steps", scheduler=["diffusers", "DDIMScheduler"]),
        "it names a scheduler but no steps",
    ),
}


def edit_out(folder, name, key, **changes):
    data = json.loads((folder / name).read_text())
    data.pop(key)
    (folder / name).write_text(json.dumps(data | changes))


@pytest.mark.parametrize("case", WRONG_HUB)
def test_what_is_wrong_with_a_folder_from_a_hub_is_named(damaged, case):
    damage, message = WRONG_HUB[case]
    damage(damaged)
    for read in (checkpoint.load, describe):
        with pytest.raises(CheckpointError) as caught:
            read(damaged)
        assert message in str(caught.value) and "\n" not in str(caught.value)
