"""What an album does and what it leaves alone: every photo once, outputs never, nothing of the user's is written over, no entry ends the rest."""

import contextlib
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from albums import files, photo, pretend, run
from f2i_runtime.album.album_plan import plan_album
from f2i_runtime.album.album_records import read_records
from f2i_runtime.album.upscale_album import FolderJob, missing, run_folder
from f2i_runtime.errors import PhotoError, UsageError
from f2i_runtime.photo.photo_listing import find_photos, photo_files
from f2i_runtime.targets import Variant
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image


@pytest.mark.parametrize("where", ["big", ".", "..", "sub/deep", "../elsewhere", "link", "Big/../big"])
def test_outputs_are_never_inputs(tiny_bundle, tmp_path, where):
    album = tmp_path / "album"
    for k, name in enumerate(("a.png", "trip/b.png")):
        photo(album / name, k * 20)
    if where == "link":
        (tmp_path / "apart").mkdir()
        (album / "link").symlink_to(tmp_path / "apart")
    if where.startswith("Big"):
        (album / "Big").mkdir()
    out = album / where
    job = FolderJob(tiny_bundle, out, Variant("onnx", "fp32"), threads=1)
    for expected in (2, 0, 0):
        plan = plan_album([str(album)], out)
        assert sorted(s.output for s in plan.sources) == ["a_x2.png", "trip/b_x2.png"]
        todo = missing(job, plan.sources)
        assert len(todo) == expected
        assert [done.error for done in run_folder(job, todo, lambda *_: None)] == [None] * expected
    assert {p.name for p in tmp_path.rglob("*.png")} == {"a.png", "b.png", "a_x2.png", "b_x2.png"}
    elsewhere = plan_album([str(album)], tmp_path / "second")
    assert sorted(s.output for s in elsewhere.sources) == ["a_x2.png", "trip/b_x2.png"], "nor are they for another album"


def test_links_to_photos_and_to_outputs(tmp_path):
    album, out = tmp_path / "album", tmp_path / "album" / "big"
    photo(album / "z.png")
    (album / "a-link.png").symlink_to("z.png")
    os.link(album / "z.png", album / "hard.png")
    pretend(plan_album([str(album)], out), out)
    (album / "latest.png").symlink_to(next(out.glob("*_x2.png")))
    (tmp_path / "list.txt").write_text(f"{album / 'a-link.png'}\n{album / 'z.png'}\n")
    plan = plan_album([str(album), str(tmp_path / "list.txt")], out)
    assert len(plan.sources) == 1 and not os.path.islink(plan.sources[0].location)
    assert plan.sources[0].output in read_records(out)
    outside = plan_album([str(album / "latest.png"), str(album / "z.png")], out)
    assert outside.sources == plan.sources and outside.notes == ("1 files are outputs of an earlier run: left out",)


def test_what_the_user_put_there_is_not_written_over(tiny_bundle, tmp_path):
    album = tmp_path / "album"
    photo(album / "a.png")
    photo(album / "a_x2.png", 90)
    mine = (album / "a_x2.png").read_bytes()
    for _ in range(2):
        result = run(tiny_bundle, album, "--out", album)
        assert result.returncode == 0, result.stderr
        assert (album / "a_x2.png").read_bytes() == mine
        assert files(album) == {"a.png", "a_x2.png", "a_png_x2.png", "a_x2_x2.png"}
    # An output that was edited since is the user's as well.
    edited = album / "a_png_x2.png"
    edited.write_bytes(edited.read_bytes() + b"edited")
    kept = edited.read_bytes()
    assert run(tiny_bundle, album / "a.png", "--out", album).returncode == 0
    assert edited.read_bytes() == kept and "a_x2-2.png" in files(album)


def test_two_sources_of_one_name_are_both_done(tmp_path):
    album, out = tmp_path / "album", tmp_path / "out"
    for name in ("IMG_9.HEIC", "IMG_9.jpg", "img_9.JPG", "IMG_9.png"):
        photo(album / name)
    plan = plan_album([str(album)], out)
    names = {Path(s.location).name: s.output for s in plan.sources}
    assert names["IMG_9.jpg"] == "IMG_9_x2.jpg" and names["IMG_9.HEIC"] == "IMG_9_heic_x2.jpg" and names["IMG_9.png"] == "IMG_9_x2.png"
    assert len({n.casefold() for n in names.values()}) == 4, "also on a disk that ignores case"
    assert sum("is taken" in note for note in plan.notes) == 2
    pretend(plan, out)
    again = plan_album([str(album / name) for name in reversed(names)], out)
    assert {Path(s.location).name: s.output for s in again.sources} == names, "in another order each keeps its name"


def test_the_other_source_in_a_second_run_writes_over_nothing(tmp_path):
    album, out = tmp_path / "album", tmp_path / "out"
    for name in ("IMG_9.HEIC", "IMG_9.jpg"):
        photo(album / name)
    first = plan_album([str(album / "IMG_9.HEIC")], out)
    pretend(first, out)
    second = plan_album([str(album / "IMG_9.jpg")], out)
    assert (first.sources[0].output, second.sources[0].output) == ("IMG_9_x2.jpg", "IMG_9_jpg_x2.jpg")


def test_a_photo_that_was_moved_keeps_its_output(tmp_path):
    out = tmp_path / "out"
    source = photo(tmp_path / "one" / "a.png")
    pretend(plan_album([str(source)], out), out)
    (tmp_path / "two").mkdir()
    moved = source.rename(tmp_path / "two" / "a.png")
    assert [s.output for s in plan_album([str(moved)], out).sources] == ["a_x2.png"]


COMPANIONS = [
    "._IMG_1.jpg",
    ".thumbnails/IMG_1.jpg",
    "@eaDir/IMG_1.jpg",
    "__MACOSX/IMG_1.jpg",
    "#recycle/old.png",
    ".hidden.heic",
    "$RECYCLE.BIN/x.jpg",
]


@pytest.mark.parametrize("name", COMPANIONS)
def test_companion_files_are_no_photos(tmp_path, name):
    album = tmp_path / "album"
    photo(album / "IMG_1.png")
    (album / name).parent.mkdir(parents=True, exist_ok=True)
    (album / name).write_bytes(b"\0\5\26\7 no photo")
    assert [Path(s.location).name for s in plan_album([str(album)], tmp_path / "out").sources] == ["IMG_1.png"]
    assert [p.name for p in photo_files(album)] == ["IMG_1.png"] and [p.name for p in find_photos(album)] == ["IMG_1.png"]


@pytest.mark.parametrize("command", ["album", "validate", "calibrate", "train", "scores"])
@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".tif", ".tiff", ".webp", ".avif", ".heic", ".heif", ".hif", ".bmp"])
def test_every_command_finds_the_same_photos(tmp_path, command, suffix, monkeypatch):
    folder = tmp_path / "photos"
    photo(folder / f"a{suffix}")
    (folder / f"._a{suffix}").write_bytes(b"no photo")
    if command == "album":
        found = [Path(s.location).name for s in plan_album([str(folder)], tmp_path / "out").sources]
    elif command == "validate":
        found = [p.name for p in photo_files(folder)]
    elif command == "calibrate":
        from f2i_quantize.ptq.calibration_tiles import calibration_set

        with pytest.raises(UsageError, match="1 of 1 photos"):
            calibration_set(folder, 32, 4, 0)
        return
    elif command == "train":
        from f2i_quantize.train.crops import read_folder

        found = [p.name for p in read_folder(folder).photos]
    else:
        from f2i_quantize.train.held_out import read_pairs

        found = [name for name, _, _ in read_pairs(folder)]
    assert found == [f"a{suffix}"]


TREE = st.lists(
    st.tuples(
        st.sampled_from(["", "x/", "x/y/", "big/", ".h/"]),
        st.sampled_from(["a", "b", "a_x2", "._c", "a_png"]),
        st.sampled_from([".png", ".jpg", ".PNG", ".heic"]),
    ),
    min_size=1,
    max_size=7,
    unique=True,
)
LINKS = st.lists(st.tuples(st.sampled_from(["l", "x/m", "big/n"]), st.integers(0, 6)), max_size=3, unique_by=lambda link: link[0])


@settings(max_examples=60, deadline=None)
@given(TREE, LINKS, st.sampled_from([".", "big", "x", "..", "../out"]), st.lists(st.sampled_from(["", "x", "big"]), max_size=2))
def test_random_trees_are_upscaled_once_twice_over(tree, links, where, more):
    with tempfile.TemporaryDirectory() as name:
        album = Path(name).resolve() / "album"
        paths = [album / f"{folder}{stem}{suffix}" for folder, stem, suffix in tree]
        for k, path in enumerate(paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes([k]))
        for link, k in links:
            target = album / f"{link}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                target.symlink_to(paths[k % len(paths)])
        out = album / where
        inputs = [str(album), *(str(album / m) for m in more if (album / m).is_dir())]
        apart = out.resolve()

        def is_input(path, root):
            """Below a searched folder, not hidden, and not in an output folder that lies below the searched one."""
            below = root in path.parents and not any(part.startswith(".") for part in path.relative_to(root).parts)
            return below and not (root in apart.parents and apart in path.parents)

        wanted = {p for p in paths if any(is_input(p, Path(root)) for root in inputs)}
        before = {p: p.read_bytes() for p in paths}
        for _ in range(3):
            try:
                plan = plan_album(inputs, out)
            except UsageError as e:
                assert not wanted or "holds no photos" in str(e)
                break
            done = [Path(s.location).resolve() for s in plan.sources]
            assert len(set(done)) == len(done) and wanted <= set(done) <= set(paths)
            assert len({s.output.casefold() for s in plan.sources}) == len(done)
            pretend(plan, out)
            assert {p: p.read_bytes() for p in paths} == before, "no photo was written over"


def test_a_damaged_photo_is_said_on_stderr(tiny_bundle, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(tmp_path / "a.jpg", quality=90)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2] + data[-2:])
    for out in (tmp_path / "one.jpg", tmp_path / "folder"):
        result = run(tiny_bundle, tmp_path / "a.jpg", "--out", out, *(["--format", "jpg"] if out.name == "folder" else []))
        if out.name == "folder":
            out.mkdir(exist_ok=True)
            result = run(tiny_bundle, tmp_path / "a.jpg", "--out", out)
        assert result.returncode == 0 and "past damaged data" in result.stderr, result.stderr


@pytest.mark.parametrize("use", ["validate", "train"])
def test_damaged_photos_are_not_measured_or_learned_from(tmp_path, use):
    from f2i_runtime.photo.whole_photo import read_photo

    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(tmp_path / "a.jpg", quality=90)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2] + data[-2:])
    if use == "validate":
        with pytest.raises(PhotoError, match="damaged") as caught:
            read_photo(tmp_path / "a.jpg")
        assert "\n" not in str(caught.value)
        return
    from f2i_quantize.train.crops import read_folder

    photo(tmp_path / "b.png")
    found = read_folder(tmp_path)
    assert [p.name for p in found.photos] == ["b.png"] and "damaged" in found.skipped[0].reason
