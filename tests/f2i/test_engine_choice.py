"""Whoever names no target gets the fastest engine of this machine, in the command and in the Python functions, and is told which."""

import subprocess

import pytest
from f2i_runtime.errors import UsageError
from f2i_runtime.photo.samples import sample_photo
from f2i_runtime.targets import find_target
from PIL import Image
from repository import F2I

import f2i


def run(bundle, tmp_path, *options):
    Image.open(sample_photo("chelsea.png")).crop((0, 0, 40, 30)).save(tmp_path / "a.png")
    command = [F2I, "run", str(bundle), str(tmp_path / "a.png"), "--out", str(tmp_path / "out.png"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_run_takes_the_fastest_engine_and_says_so(tiny_bundle, tmp_path):
    result = run(tiny_bundle, tmp_path)
    assert result.returncode == 0, result.stderr
    line = next(line for line in result.stderr.splitlines() if "is the fastest engine here" in line)
    chosen = find_target(line.partition("/")[0])
    natives = [find_target(v.target) for v in f2i.open_bundle(tiny_bundle).manifest.variants() if find_target(v.target).native_here]
    assert chosen.native_here and chosen.rank == min(target.rank for target in natives)
    assert "evaluator" not in result.stdout + result.stderr


def test_the_functions_take_the_same(tiny_bundle):
    bundle = f2i.open_bundle(tiny_bundle)
    with f2i.open_engine(bundle) as engine:
        assert find_target(engine.target).native_here
    with pytest.raises(UsageError, match="fp32 in this bundle, got 'w8a8'"):
        f2i.open_engine(bundle, target="torch", precision="w8a8")


def test_the_reference_in_int8_is_refused_where_the_bundle_has_no_such_program(tiny_bundle, tmp_path):
    result = run(tiny_bundle, tmp_path, "--target", "torch", "--precision", "w8a8")
    assert result.returncode == 2 and "got 'w8a8'" in result.stderr
    assert not (tmp_path / "out.png").exists()
