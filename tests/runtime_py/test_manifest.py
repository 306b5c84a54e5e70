"""The manifest and the bundle it vouches for: strict reading, confined paths, hashes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from f2i_runtime.bundle.manifest import parse_manifest
from f2i_runtime.bundle.store import Bundle, load_array, open_bundle, verify
from f2i_runtime.engines.session import open_session
from f2i_runtime.errors import BundleError, UsageError
from f2i_runtime.photo.samples import sample_tiles
from f2i_runtime.pipeline import choose_variant, open_pipeline
from f2i_runtime.targets import EVERYTHING, REFERENCE, Selection, Variant
from hub_cache import as_snapshot


@pytest.fixture(scope="module")
def text(tiny_bundle):
    return (tiny_bundle / "manifest.json").read_text()


def test_written_and_read_again_is_the_same(text):
    manifest = parse_manifest(text, "m")
    assert parse_manifest(manifest.model_dump_json(), "m") == manifest
    assert json.loads(text)["schema"] == 2


def test_a_bundle_of_schema_1_is_read_and_its_artifacts_are_for_the_cpu(text):
    old = json.loads(text)
    old["schema"] = 1
    for artifact in old["artifacts"]:
        del artifact["accelerator"]
    assert parse_manifest(json.dumps(old), "m").variants() == parse_manifest(text, "m").variants()
    assert {v.accelerator for v in parse_manifest(json.dumps(old), "m").variants()} == {"cpu"}


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
        (("schema",), 3, "schema"),
        (("surprise",), 1, "surprise: Extra inputs"),
        (("artifacts", 0, "path"), "../../etc/passwd", "inside the bundle"),
        (("artifacts", 0, "path"), "/etc/passwd", "inside the bundle"),
        (("artifacts", 0, "path"), "a\\b", "inside the bundle"),
        (("artifacts", 0, "path"), "c:/x", "inside the bundle"),
        (("artifacts", 0, "component"), "nobody", "unknown component 'nobody'"),
        (("artifacts", 0, "target"), "Tensor RT", "artifacts.0.target"),
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
    assert choose_variant(bundle, Selection("onnx")) == Variant("onnx", "fp32")
    with pytest.raises(BundleError, match="no onnx/w8a8 in it; it holds coreml/fp32"):
        choose_variant(bundle, Selection("onnx", "w8a8"))
    with pytest.raises(BundleError, match="it holds no onnx/p4 of"):
        open_pipeline(bundle, Variant("onnx", "p4"))
    with pytest.raises(BundleError, match="no onnx/any precision/hexagon in it"):
        choose_variant(bundle, Selection("onnx", accelerator="hexagon"))


def test_without_a_target_the_fastest_native_engine_computes_in_float(text):
    """LiteRT's engine comes first on every machine that is no Mac; the evaluator that stands in for Core ML comes last."""
    bundle = Bundle(Path("m"), parse_manifest(text, "m"))
    first = "coreml" if sys.platform == "darwin" else "tflite"
    assert choose_variant(bundle, EVERYTHING) == Variant(first, "fp32")
    assert choose_variant(bundle, Selection(precision="fp16")) == Variant(first, "fp16")
    int8 = [a.model_copy(update={"precision": "w8a8"}) for a in bundle.manifest.artifacts if a.variant == Variant("tflite", "fp16")]
    rest = [a for a in bundle.manifest.artifacts if a.target in ("onnx", "coreml")]
    held = Bundle(bundle.root, bundle.manifest.model_copy(update={"artifacts": (*int8, *rest)}))
    assert choose_variant(held, EVERYTHING).target == ("coreml" if sys.platform == "darwin" else "onnx"), "float before int8"
    assert choose_variant(held, Selection("tflite")) == Variant("tflite", "w8a8"), "int8 where nothing else is there"


def test_the_reference_and_the_qdq_programs_are_never_taken_for_one_another(text):
    bundle = Bundle(Path("m"), parse_manifest(text, "m"))
    assert choose_variant(bundle, Selection("torch")) == REFERENCE
    with pytest.raises(UsageError, match="the reference and the QDQ programs: fp32 in this bundle, got 'w8a8'"):
        choose_variant(bundle, Selection("torch", "w8a8"))
    program = {"w8a8": bundle.manifest.components["unet"].reference}
    components = {name: c.model_copy(update={"simulated": program}) for name, c in bundle.manifest.components.items()}
    held = Bundle(bundle.root, bundle.manifest.model_copy(update={"components": components}))
    assert choose_variant(held, Selection("torch", "w8a8")) == Variant("torch", "w8a8")


def test_a_target_that_is_not_known_here_is_verified_and_not_run(bundle_copy):
    path = bundle_copy / "manifest.json"
    data = json.loads(path.read_text())
    for artifact in data["artifacts"]:
        artifact["target"] = "elsewhere" if artifact["target"] == "onnx" else artifact["target"]
    path.write_text(json.dumps(data))
    bundle = open_bundle(bundle_copy)
    verify(bundle)
    assert choose_variant(bundle, EVERYTHING).target != "elsewhere"
    with pytest.raises(UsageError, match="target 'elsewhere' is unknown; choose from coreml, executorch"):
        open_pipeline(bundle, Variant("elsewhere", "fp32"))


def test_an_accelerator_that_the_target_does_not_have(tiny_bundle):
    artifact = open_bundle(tiny_bundle).manifest.artifacts[0]
    with pytest.raises(UsageError, match="accelerator 'gpu' is not available for onnx; it has cpu, hexagon"):
        open_session(Variant("onnx", "fp32", "gpu"), tiny_bundle / artifact.path, component="unet", inputs={})


@pytest.fixture
def snapshot(bundle_copy, tmp_path):
    """The bundle as a hub's cache holds it."""
    return as_snapshot(bundle_copy, tmp_path / "hub")


def test_a_snapshot_of_a_hub_is_a_bundle(snapshot, tiny_bundle):
    bundle, plain = open_bundle(snapshot), open_bundle(tiny_bundle)
    assert verify(bundle) == verify(plain)
    [(_, tile)] = sample_tiles(32, 1)
    for variant in plain.manifest.variants():
        with open_pipeline(bundle, variant) as linked, open_pipeline(plain, variant) as copied:
            np.testing.assert_array_equal(linked.tile(tile), copied.tile(tile), err_msg=str(variant))


def test_a_link_through_a_folder_to_the_snapshot_is_followed(snapshot, tmp_path):
    (tmp_path / "mine").symlink_to(snapshot)
    assert verify(open_bundle(tmp_path / "mine")) > 0


ESCAPES = {
    "another place": lambda repository, other: other,
    "the repository itself": lambda repository, other: repository / "refs.npy",
    "below the store": lambda repository, other: repository / "blobs" / "deep" / "x.npy",
    "another snapshot": lambda repository, other: repository / "snapshots" / "2" / "x.npy",
    "another repository's store": lambda repository, other: repository.with_name("models--other") / "blobs" / ("a" * 64),
}


@pytest.mark.parametrize("place", ESCAPES)
@pytest.mark.parametrize("through", [False, True])
def test_a_link_out_of_a_snapshot_is_refused(snapshot, tmp_path, place, through):
    """Also where the store holds the link that leads out."""
    repository = snapshot.parents[1]
    link = snapshot / "golden" / "portrait" / "lr.npy"
    target = ESCAPES[place](repository, tmp_path / "elsewhere.npy")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(link.read_bytes())
    if through:
        blob = repository / "blobs" / ("b" * 64)
        blob.symlink_to(target)
        target = blob
    link.unlink()
    link.symlink_to(target)
    with pytest.raises(BundleError, match="leads outside the bundle"):
        verify(open_bundle(snapshot))


def test_a_store_that_is_a_link_is_no_store(snapshot, tmp_path):
    store = snapshot.parents[1] / "blobs"
    store.rename(tmp_path / "elsewhere")
    store.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="leads outside the bundle"):
        verify(open_bundle(snapshot))


def test_what_an_artifact_s_path_names_must_be_hashed(text, bundle_copy):
    data = json.loads(text)
    for number, artifact in enumerate(data["artifacts"]):
        for path in ("other/model.bin", artifact["path"] + "x", artifact["path"][:-1]):
            with pytest.raises(BundleError, match="its path is not among its hashed files") as caught:
                parse_manifest(changed(text, ("artifacts", number, "path"), path), "m")
            assert "\n" not in str(caught.value)


def test_a_file_in_a_package_that_the_manifest_does_not_list_is_refused_when_it_is_opened(bundle_copy):
    bundle = open_bundle(bundle_copy)
    artifact = bundle.manifest.artifact("unet", Variant("coreml", "fp32"))
    stray = bundle.artifact_path(artifact) / "Data" / "stray.bin"
    stray.write_bytes(b"?")
    with pytest.raises(BundleError, match=r"stray\.bin: the manifest does not list it"):
        bundle.artifact_path(artifact)
