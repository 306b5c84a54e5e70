"""The manifest and the bundle it vouches for: strict reading, confined paths, hashes."""

import json

import numpy as np
import pytest
from f2i_runtime.bundle.manifest import parse_manifest
from f2i_runtime.bundle.store import load_array, open_bundle, verify
from f2i_runtime.errors import BundleError
from f2i_runtime.pipeline import choose_variant, open_pipeline


@pytest.fixture(scope="module")
def text(tiny_bundle):
    return (tiny_bundle / "manifest.json").read_text()


def test_written_and_read_again_is_the_same(text):
    manifest = parse_manifest(text, "m")
    assert parse_manifest(manifest.model_dump_json(), "m") == manifest
    assert json.loads(text)["schema"] == 1


def changed(text, path, value):
    data = json.loads(text)
    *parents, last = path
    node = data
    for key in parents:
        node = node[key]
    node[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 2, "schema"),
        (("surprise",), 1, "surprise: Extra inputs"),
        (("artifacts", 0, "path"), "../../etc/passwd", "inside the bundle"),
        (("artifacts", 0, "path"), "/etc/passwd", "inside the bundle"),
        (("artifacts", 0, "path"), "a\\b", "inside the bundle"),
        (("artifacts", 0, "path"), "c:/x", "inside the bundle"),
        (("artifacts", 0, "component"), "nobody", "unknown component 'nobody'"),
        (("artifacts", 0, "target"), "tensorrt", "artifacts.0.target"),
        (("tile", "overlap"), 16, "must be less than half"),
        (("tile", "multiple"), 5, "not a multiple of 5"),
        (("dataflow", 0, "component"), "nobody", "unknown component 'nobody'"),
        (("dataflow", 0, "inputs"), {"lr": "later"}, "before anything makes it"),
        (("dataflow", 0, "inputs"), {"image": "lr"}, "dataflow binds"),
        (("dataflow", 1, "result"), "other", "expected 'sr'"),
        (("components", "unet", "reference", "sha256"), "12", "sha256"),
        (("components", "unet", "output_spec", "shape"), [1, 0], "shape"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_one_line(text, path, value, message):
    with pytest.raises(BundleError) as caught:
        parse_manifest(changed(text, path, value), "there/manifest.json")
    assert str(caught.value).startswith("there/manifest.json: ") and message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["", "{", "[]", "\x00" * 40])
def test_a_manifest_that_is_no_manifest(bundle_copy, damage):
    (bundle_copy / "manifest.json").write_text(damage)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(bundle_copy)


def test_folders_that_are_no_bundles(tmp_path):
    with pytest.raises(BundleError, match="no such folder"):
        open_bundle(tmp_path / "none")
    with pytest.raises(BundleError, match="so it is not a bundle"):
        open_bundle(tmp_path)


def test_verify_finds_every_kind_of_damage(bundle_copy):
    bundle = open_bundle(bundle_copy)
    victim = bundle_copy / "golden" / "portrait" / "lr.npy"
    content = victim.read_bytes()
    victim.write_bytes(content[:-1])
    with pytest.raises(BundleError, match="the file was cut or changed"):
        verify(bundle)
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match="SHA-256"):
        verify(bundle)
    victim.unlink()
    with pytest.raises(BundleError, match="missing; the manifest lists it"):
        verify(bundle)
    victim.write_bytes(content)
    (bundle_copy / "stray.txt").write_text("?")
    with pytest.raises(BundleError, match="does not list it"):
        verify(bundle)
    (bundle_copy / "stray.txt").unlink()
    assert verify(bundle) == sum(f.bytes for f in bundle.manifest.files())


def test_a_link_out_of_the_bundle_is_refused(bundle_copy, tmp_path):
    bundle = open_bundle(bundle_copy)
    victim = bundle_copy / "golden" / "portrait" / "lr.npy"
    elsewhere = tmp_path / "elsewhere.npy"
    victim.rename(elsewhere)
    victim.symlink_to(elsewhere)
    with pytest.raises(BundleError, match="leads outside the bundle"):
        verify(bundle)


def test_arrays_are_float32_and_never_pickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(BundleError, match=r"not a readable \.npy"):
        load_array(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(BundleError, match="dtype float64, expected float32"):
        load_array(tmp_path / "b.npy")


def test_a_variant_that_is_not_there_is_refused_with_what_is(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    assert choose_variant(bundle, "onnx", None) == ("onnx", "fp32")
    with pytest.raises(BundleError, match="no onnx/w8a8 in it; it holds coreml/fp32"):
        choose_variant(bundle, "onnx", "w8a8")
    with pytest.raises(BundleError, match="it holds no onnx/p4 of"):
        open_pipeline(bundle, "onnx", "p4")
