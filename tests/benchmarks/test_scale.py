"""The scale benchmark: real photos through a real engine, and gates that fail."""

import pytest
from f2i_bench.suites import scale
from f2i_bench.suites.scale import Scaled, compose_photo, gates, measure_size, measure_start
from f2i_runtime.bundle.store import open_bundle
from f2i_runtime.photo.reader import PhotoReader
from f2i_runtime.targets import Variant


def row(megapixels, seconds, engine, memory):
    return Scaled(megapixels, 10, seconds, seconds, engine, memory)


def failed(rows, start=1.0, torch=False):
    return [g.name for g in gates(rows, start, torch) if not g.passed]


def test_gates_fail_one_by_one():
    good = [row(12, 60, 58, 400_000_000), row(200, 1050, 1020, 500_000_000)]
    assert failed(good) == []
    assert failed([good[0], row(200, 1050, 1020, 530_000_000)]) == ["peak memory, largest photo over smallest"]
    assert failed([row(12, 60, 58, 2_000_000_000), row(200, 1050, 1020, 2_200_000_000)]) == ["peak memory, bytes"]
    assert failed([good[0], row(200, 1200, 1170, 500_000_000)]) == ["processor time per megapixel, most over least, less one"]
    assert failed([row(12, 60, 55, 400_000_000), good[1]]) == ["processor time around the engines over theirs"]
    assert failed(good, start=1.6) == ["seconds of a whole command on one tile"]
    assert failed(good, torch=True) == ["torch imported"]


@pytest.mark.parametrize("megapixels", [0.01, 3.0])
def test_photos_have_the_size_asked_for(tmp_path, megapixels):
    height, width = compose_photo(tmp_path / "a.jpg", megapixels)
    assert abs(height * width / 1e6 - megapixels) < 0.02 * megapixels
    with PhotoReader(tmp_path / "a.jpg") as reader:
        assert (reader.height, reader.width) == (height, width)
        assert reader.rows(0, height).std() > 0.1


def test_a_photo_and_a_start_are_measured(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "STARTS", 1)
    bundle = open_bundle(tiny_bundle)
    found = measure_size(bundle, Variant("tflite", "fp32"), 0.03, 1, tmp_path)
    assert found.tiles > 20 and 0 < found.engine_cpu_seconds < found.cpu_seconds
    assert 50e6 < found.peak_rss_bytes < 1e9
    seconds, torch = measure_start(bundle, Variant("tflite", "fp32"), tmp_path)
    assert seconds > 0 and not torch
