"""Many photos: what is done is not done again, one bad photo stops nothing, and a cluster gives the same bytes."""

import contextlib
import functools
import http.server
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pillow_heif
import psutil
import pytest
from f2i_runtime.album.album_plan import plan_album
from f2i_runtime.album.album_records import DONE
from f2i_runtime.album.upscale_album import FolderJob, missing, run_folder
from f2i_runtime.errors import UsageError
from f2i_runtime.photo.samples import sample_photo
from f2i_runtime.targets import Variant
from PIL import Image
from repository import F2I


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("album")
    (folder / "trip").mkdir()
    with Image.open(sample_photo("chelsea.png")) as cat:
        for k in range(6):
            cat.crop((20 * k, 10, 20 * k + 90, 80)).save(folder / ("trip" if k % 2 else ".") / f"{k}.png")
    (folder / "notes.md").write_text("no photo")
    return folder


def find_sources(inputs, suffix=None, out=Path("nowhere")):
    return list(plan_album(inputs, out, suffix).sources)


def outputs(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


def command(bundle, photos, out, *more):
    return [
        F2I,
        "run",
        str(bundle),
        str(photos),
        "--out",
        str(out),
        "--target",
        "onnx",
        "--threads",
        "1",
        *more,
    ]


@pytest.fixture(scope="module")
def expected(tiny_bundle, photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("expected")
    job = FolderJob(tiny_bundle, out, Variant("onnx", "fp32"), threads=1)
    assert not [done.error for done in run_folder(job, find_sources([str(photos)]), lambda *_: None) if done.error]
    return outputs(out)


def test_sources_of_every_kind(photos, tmp_path):
    (tmp_path / "list.txt").write_text(f"# mine\n{photos / '0.png'}\n\nhttps://example.org/a%20b.jpg?x=1\n")
    found = find_sources([str(tmp_path / "list.txt"), str(photos / "trip")])
    assert [s.output for s in found] == ["0_x2.png", "a b_x2.jpg", "1_x2.png", "3_x2.png", "5_x2.png"]
    assert [s.output for s in find_sources([str(tmp_path / "list.txt")], ".png")] == ["0_x2.png", "a b_x2.png"]
    (tmp_path / "phone.HEIC").write_bytes(b"")
    assert [s.output for s in find_sources([str(tmp_path / "phone.HEIC")])] == ["phone_x2.jpg"]
    (tmp_path / "phone.HEIC").unlink()
    with pytest.raises(UsageError, match="holds no photos"):
        find_sources([str(tmp_path)])
    with pytest.raises(UsageError, match="no such photo or folder"):
        find_sources([str(photos / "none.png")])
    (tmp_path / "0.png").write_bytes(b"")
    both = plan_album([str(photos / "0.png"), str(tmp_path / "0.png")], tmp_path / "out")
    assert [s.output for s in both.sources] == ["0_x2.png", "0_png_x2.png"]
    assert both.notes == (f"{tmp_path / '0.png'}: its output is 0_png_x2.png, because 0_x2.png is taken",)


def test_only_what_is_missing_is_done(tiny_bundle, photos, expected, tmp_path):
    first = subprocess.run(command(tiny_bundle, photos, tmp_path / "out"), capture_output=True, text=True, timeout=120)
    assert first.returncode == 0, first.stderr
    assert outputs(tmp_path / "out") == expected
    job = FolderJob(tiny_bundle, tmp_path / "out", Variant("onnx", "fp32"), threads=1)
    sources = find_sources([str(photos)])
    assert missing(job, sources) == []
    (tmp_path / "out" / "trip" / "3_x2.png").unlink()
    assert [s.output for s in missing(job, sources)] == ["trip/3_x2.png"]
    assert len(missing(FolderJob(tiny_bundle, tmp_path / "out", Variant("onnx", "fp16")), sources)) == len(sources), (
        "other settings, other outputs"
    )
    again = subprocess.run(command(tiny_bundle, photos, tmp_path / "out"), capture_output=True, text=True, timeout=120)
    assert "5 of 6 photos are done already" in again.stderr and again.stdout.count("_x2.png") == 1
    assert outputs(tmp_path / "out") == expected


def test_a_folder_of_heic_becomes_jpeg(tiny_bundle, tmp_path):
    (tmp_path / "in").mkdir()
    with Image.open(sample_photo("chelsea.png")) as cat:
        pillow_heif.from_pillow(cat.crop((0, 0, 70, 50))).save(tmp_path / "in" / "phone.HEIC", quality=90)
    job = FolderJob(tiny_bundle, tmp_path / "out", Variant("onnx", "fp32"), threads=1)
    assert [done.error for done in run_folder(job, find_sources([str(tmp_path / "in")]), lambda *_: None)] == [None]
    with Image.open(tmp_path / "out" / "phone_x2.jpg") as picture:
        assert picture.size == (140, 100)


def test_one_bad_photo_stops_nothing(tiny_bundle, photos, expected, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.png").write_bytes((photos / "0.png").read_bytes())
    (tmp_path / "in" / "bad.png").write_bytes(b"not a photo")
    result = subprocess.run(command(tiny_bundle, tmp_path / "in", tmp_path / "out"), capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and "bad.png" in result.stderr and "1 of 2 photos could not be done" in result.stderr
    assert "Traceback" not in result.stderr
    assert outputs(tmp_path / "out") == {"0_x2.png": expected["0_x2.png"]}


def test_a_photo_that_changes_while_it_is_read_is_noticed(tiny_bundle, photos, tmp_path):
    (tmp_path / "in").mkdir()
    photo = tmp_path / "in" / "0.png"
    photo.write_bytes((photos / "0.png").read_bytes())
    job = FolderJob(tiny_bundle, tmp_path / "out", Variant("onnx", "fp32"))
    [done] = run_folder(job, find_sources([str(tmp_path / "in")]), lambda *_: os.utime(photo, ns=(1, 1)))
    assert "changed or removed while it was read" in done.error
    assert outputs(tmp_path / "out") == {} and len(missing(job, find_sources([str(tmp_path / "in")]))) == 1
    (tmp_path / "out" / "0_x2.png").write_bytes(b"mine")
    assert find_sources([str(tmp_path / "in")], out=tmp_path / "out")[0].output == "0_png_x2.png", (
        "what was begun and failed claims no name"
    )


def test_killed_run_goes_on_and_leaves_nothing_half_written(tiny_bundle, photos, expected, tmp_path):
    process = subprocess.Popen(command(tiny_bundle, photos, tmp_path / "out"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / DONE).exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert all(expected[name] == data for name, data in outputs(tmp_path / "out").items())
    with (tmp_path / "out" / DONE).open("a") as file:
        file.write('{"source": "cut by the ki')
    again = subprocess.run(command(tiny_bundle, photos, tmp_path / "out"), capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert outputs(tmp_path / "out") == expected


def test_photos_come_from_urls(tiny_bundle, photos, expected, tmp_path):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(photos))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        job = FolderJob(tiny_bundle, tmp_path / "out", Variant("onnx", "fp32"), threads=1)
        done = list(run_folder(job, find_sources([f"{base}/0.png", f"{base}/none.png"]), lambda *_: None))
        server.shutdown()
    assert done[0].error is None and "404" in done[1].error
    assert outputs(tmp_path / "out") == {"0_x2.png": expected["0_x2.png"]}


def ray_environment():
    return os.environ | {"RAY_DISABLE_DOCKER_CPU_WARNING": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def actors(process):
    """Living worker processes that hold an engine."""

    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE and child.cmdline()[:1] and "PhotoActor" in child.cmdline()[0]:
                found.append(child)
    return found


def wait_for(condition, process, seconds):
    deadline = time.monotonic() + seconds
    while not (found := condition()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found, process.communicate(timeout=60)[1] if process.poll() is not None else "nothing came in time"
    return found


def test_ray_gives_the_same_bytes_though_a_worker_is_killed(tiny_bundle, photos, expected, tmp_path):
    arguments = command(tiny_bundle, photos, tmp_path / "out", "--ray", "local", "--workers", "2")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ray_environment())
    wait_for(lambda: actors(process), process, 90)[0].kill()
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert outputs(tmp_path / "out") == expected
    lines = [json.loads(line) for line in (tmp_path / "out" / DONE).read_text().splitlines()]
    assert {line["output"] for line in lines} == set(expected)


@pytest.fixture(scope="module")
def many(tiny_bundle, tmp_path_factory):
    """200 small photos and what one process makes of them."""
    folder, out = tmp_path_factory.mktemp("many"), tmp_path_factory.mktemp("many-expected")
    with Image.open(sample_photo("chelsea.png")) as cat:
        for k in range(200):
            cat.crop((k, k % 50, k + 60, k % 50 + 44)).save(folder / f"{k:03}.png")
    job = FolderJob(tiny_bundle, out, Variant("onnx", "fp32"), threads=1)
    assert not [done.error for done in run_folder(job, find_sources([str(folder)]), lambda *_: None) if done.error]
    return folder, outputs(out)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "driver"])
def test_two_ray_workers_do_200_photos_once_whoever_dies(tiny_bundle, many, tmp_path, victim):
    folder, wanted = many
    out = tmp_path / "out"

    def start():
        arguments = command(tiny_bundle, folder, out, "--ray", "local", "--workers", "2")
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ray_environment())

    def half_done():
        return (out / DONE).is_file() and (out / DONE).read_text().count('"seconds": null') <= (out / DONE).read_text().count("\n") - 100

    process = start()
    wait_for(half_done, process, 300)
    if victim == "worker":
        assert len(actors(process)) == 2
        actors(process)[0].kill()
    else:
        process.kill()
        process.communicate(timeout=60)
        done_before = outputs(out)
        assert 100 <= len(done_before) < 200 and done_before.items() <= wanted.items()
        process = start()
    printed, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert outputs(out) == wanted
    assert {p.name for p in out.iterdir()} == {*wanted, DONE}, "nothing half-written is left"
    lines = [json.loads(line)["output"] for line in (out / DONE).read_text().splitlines()]
    assert set(lines) == set(wanted)
    if victim == "driver":
        assert "of 200 photos are done already" in errors and printed.count("_x2.png") < 101


@pytest.mark.slow
def test_validate_on_ray_says_what_it_says_here(tiny_bundle, photos, tmp_path):
    (tmp_path / "list.txt").write_text(f"{photos / '0.png'}\n{photos / 'trip' / '1.png'}\n")
    reports = []
    for name, more in (("here", []), ("ray", ["--ray", "local"])):
        arguments = [
            "validate",
            str(tiny_bundle),
            "--images",
            str(tmp_path / "list.txt"),
            "--precision",
            "fp32",
            "--num-tiles",
            "2",
            "--num-photos",
            "1",
        ]
        done = subprocess.run(
            [F2I, *arguments, "--json", str(tmp_path / f"{name}.json"), *more],
            capture_output=True,
            text=True,
            timeout=300,
            env=ray_environment(),
        )
        assert done.returncode in (0, 1), done.stderr
        reports.append(json.loads((tmp_path / f"{name}.json").read_text()))
    here, there = reports
    for row in here["photos"] + there["photos"]:
        assert row.pop("latency_ratio") > 0
    assert here == there
