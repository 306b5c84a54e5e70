"""Every shape of model that loads is exported and computes what its reference computes: latent codecs, several steps, noise, registers."""

import numpy as np
import pytest
from f2i_bench.host.host_worker import call_inputs, golden_inputs
from f2i_export.write_bundle import ExportOptions, export_bundle
from f2i_quantize.models import checkpoint
from f2i_runtime.bundle.store import load_array
from f2i_runtime.photo.samples import sample_tiles
from f2i_runtime.pipeline import open_pipeline
from f2i_runtime.targets import REFERENCE, TARGETS, Variant
from model_zoo import latent_model, small_kl, small_tiny

FAMILIES = {
    "kl, three steps from noise, registers": lambda: latent_model(small_kl(), registers=True, steps=3, noise=True),
    "tiny autoencoder, one step": lambda: latent_model(small_tiny()),
}


def agree(model, folder, targets, precisions):
    checkpoint.save(model, folder / "checkpoint")
    bundle = export_bundle(ExportOptions(str(folder / "checkpoint"), folder / "bundle", targets, precisions))
    [(_, tile)] = sample_tiles(32, 1, seed=2)
    with open_pipeline(bundle, REFERENCE) as reference:
        expected = reference.tile(tile, (64, 32))
        if model.config.noise:
            assert not np.array_equal(reference.tile(tile, (0, 0)), expected), "noise must depend on where the tile lies"
    for target in targets:
        for precision, limit in (("fp32", 3e-5), ("fp16", 2e-2)):
            if precision in precisions:
                with open_pipeline(bundle, Variant(target, precision)) as engine:
                    got = engine.tile(tile, (64, 32))
                assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < limit, (target, precision)
    return bundle


def test_latent_model_with_steps_and_noise(cache, tmp_path):
    bundle = agree(FAMILIES["kl, three steps from noise, registers"](), tmp_path, ("onnx",), ("fp32",))
    calls = [c.component for c in bundle.manifest.dataflow]
    assert calls == ["feature_encoder", "codec_encoder", "unet", "unet", "unet", "codec_decoder"]
    every_call_is_fed_its_own_inputs(bundle)


def every_call_is_fed_its_own_inputs(bundle):
    """A benchmark compares each call with that call's golden output, so each step must be given its own latent and time embedding."""
    first = golden_inputs(bundle)
    with open_pipeline(bundle, REFERENCE) as reference:
        for call in bundle.manifest.dataflow:
            inputs, expected = call_inputs(bundle, call), load_array(bundle.check(bundle.manifest.golden[0].tensors[call.result]))
            np.testing.assert_allclose(reference.run(call.component, inputs), expected, atol=1e-4, err_msg=call.result)
            if call.result == "latent_1":
                assert all(np.array_equal(value, first["unet"][name]) for name, value in inputs.items())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_on_every_target(cache, tmp_path, family):
    agree(FAMILIES[family](), tmp_path, tuple(TARGETS), ("fp32", "fp16"))
