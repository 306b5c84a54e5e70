"""A seeded part of ``make fuzz``: mutated photos and manifests are read or refused in one line, in little memory, without a crash."""

import fuzz
import pytest
import pyvips
from fuzz import MEMORY, Child, attempt, case, photo_seeds


def test_seeds_are_photos_and_a_manifest(tmp_path):
    (tmp_path / "out").mkdir()
    for number, data in enumerate(photo_seeds()):
        (tmp_path / "case").write_bytes(data)
        assert attempt("photo", tmp_path / "case", tmp_path / "out") is None, number
        fuzz.read_photo(tmp_path / "case", tmp_path / "out")


def test_mutated_photos():
    assert fuzz.fuzz("photo", 210, seed=1) == []


@pytest.mark.parametrize(("seed", "number"), [(11, 209), (77, 1909), (77, 25934)])
def test_what_was_found_before(seed, number):
    """A HEIC without pictures, a field whose name is no text, a picture that ends too early."""
    assert fuzz.fuzz("photo", 1, seed=seed, first=number) == []


def test_mutated_manifests():
    assert fuzz.fuzz("manifest", 100, seed=1) == []


def test_cases_repeat_and_differ():
    seeds = photo_seeds()
    assert case("photo", 3, 0, seeds) == case("photo", 3, 0, seeds) != seeds[3]
    assert case("photo", 3, 0, seeds) != case("photo", 3 + len(seeds), 0, seeds)


def test_what_needs_more_memory_than_there_is_is_a_finding(tmp_path, monkeypatch):
    """A picture that no limit of ours refuses and that is held whole, in a child with less memory than it takes."""
    path = tmp_path / "case"
    path.write_bytes(pyvips.Image.black(9000, 9000, bands=3).copy(interpretation="srgb").pngsave_buffer(interlace=True, compression=1))
    monkeypatch.setattr(fuzz, "MEMORY", MEMORY // 8)
    worker = Child()
    try:
        what, _ = worker.ask("photo", path)
    finally:
        worker.close()
    assert what is not None and "memory" in what
