"""Photos → crops: exact bicubic halves, the same crops for one seed, and files that cannot be read."""

import numpy as np
import pytest
import torch
from f2i_quantize.train.crops import CropDataset, batches, decode, halve, read_folder
from f2i_quantize.train.degrade import degrade
from f2i_runtime.errors import UsageError
from PIL import Image
from skimage import data as photos


def write_photo(path, side=96, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    top = seed * 40
    Image.fromarray(photos.astronaut()[top : top + side, 60 : 60 + side]).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        write_photo(tmp_path / "photos" / f"{i}.png", seed=i)
    return tmp_path / "photos"


def test_halving_is_matlab_bicubic():
    """imresize([0 0 0 0 255 255 255 255], 0.5) along a row: the antialiased cubic's weights are [-3 -9 29 111 111 29 -9 -3] / 256."""
    step = np.tile(np.repeat(np.array([0, 255], np.uint8), 8)[None, :, None], (4, 1, 3))
    taps = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256
    row = np.pad(step[0, :, 0].astype(float), 3, mode="symmetric")
    expected = [int(np.floor(np.clip(row[2 * i : 2 * i + 8] @ taps, 0, 255) + 0.5)) for i in range(8)]
    assert halve(step)[0, :, 0].tolist() == expected


def test_corrupt_and_small_files_are_reported_and_skipped(folder):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a photo")
    whole = (folder / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    write_photo(folder / "small.png", side=16)
    (folder / "notes.txt").write_text("not looked at")
    found = read_folder(folder, min_side=64)
    assert [p.name for p in found.photos] == ["0.png", "1.png", "2.png"]
    reasons = {s.name: s.reason for s in found.skipped}
    assert set(reasons) == {"broken.jpg", "cut.png", "small.png"}
    assert reasons["small.png"] == "16 x 16 px, expected at least 64 per side"
    assert "cannot be decoded" in reasons["cut.png"]


def test_folder_without_a_usable_photo_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        read_folder(tmp_path / "absent")
    (tmp_path / "broken.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"1 files, none usable.*broken\.png"):
        read_folder(tmp_path)


def test_cache_gives_the_same_photos_without_decoding(folder, tmp_path, monkeypatch):
    first = read_folder(folder, cache=tmp_path / "cache")
    monkeypatch.setattr("f2i_quantize.train.crops.decode", lambda *_: pytest.fail("decoded again"))
    second = read_folder(folder, cache=tmp_path / "cache")
    for a, b in zip(first.photos, second.photos, strict=True):
        assert a.sha256 == b.sha256 and np.array_equal(a.lr, b.lr) and np.array_equal(a.hr, b.hr)


def test_two_processes_read_what_one_reads(folder):
    one, two = read_folder(folder), read_folder(folder, processes=2)
    assert [(p.name, p.sha256) for p in one.photos] == [(p.name, p.sha256) for p in two.photos]


def test_odd_sides_and_orientation(tmp_path):
    image = Image.fromarray(photos.astronaut()[:51, :33])
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    assert decode(tmp_path / "turned.png").shape == (32, 50, 3)


def test_crops_depend_on_seed_and_index_alone(folder):
    found = read_folder(folder).photos
    a, b = (CropDataset(found, 16, 32, seed=3) for _ in range(2))
    assert torch.equal(a[7][0], b[7][0]) and torch.equal(a[7][1], b[7][1])
    assert not torch.equal(a[7][0], a[8][0])
    assert not torch.equal(a[7][0], CropDataset(found, 16, 32, seed=4)[7][0])


def test_crop_is_aligned_with_its_half(folder):
    lr, hr = CropDataset(read_folder(folder).photos, 32, 8, seed=0)[5]
    image = (hr.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    made = torch.from_numpy(halve(image)).permute(2, 0, 1) / 255
    assert (made - lr)[:, 4:-4, 4:-4].abs().max() <= 1.01 / 255


def test_processes_share_one_large_batch_and_resume_where_they_were(folder):
    dataset = CropDataset(read_folder(folder).photos, 16, 24, seed=0)
    one = [lr for lr, _ in batches(dataset, 4, start=0)]
    shares = [[lr for lr, _ in batches(dataset, 2, start=0, rank=r, world=2)] for r in range(2)]
    assert all(torch.equal(torch.cat([a, b]), whole) for a, b, whole in zip(*shares, one, strict=True))
    resumed = [lr for lr, _ in batches(dataset, 4, start=4)]
    assert all(torch.equal(a, b) for a, b in zip(resumed, one[4:], strict=True)) and len(resumed) == 2


def test_degradation_is_bounded_and_deterministic():
    hr = photos.astronaut()[:64, :64]
    results = [degrade(hr, 32, np.random.default_rng(seed)) for seed in range(12)]
    clean = halve(hr).astype(float)
    errors = [np.sqrt(np.mean((r - clean) ** 2)) for r in results]
    assert all(r.shape == (32, 32, 3) and r.dtype == np.uint8 for r in results)
    assert min(errors) > 2 and max(errors) < 40
    assert np.array_equal(results[3], degrade(hr, 32, np.random.default_rng(3)))


def test_holdout_does_not_depend_on_names(folder):
    found = read_folder(folder)
    train, held = found.split(1)
    for i, p in enumerate(sorted(folder.iterdir())):
        p.rename(folder / f"{9 - i}-renamed.png")
    _, again = read_folder(folder).split(1)
    assert held.photos[0].sha256 == again.photos[0].sha256 and len(train.photos) == 2
