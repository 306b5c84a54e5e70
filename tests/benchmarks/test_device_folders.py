"""Whose a folder on a device is: a lock in its maker's cache says so, and no process number does. The device here is this machine's own shell."""

import os
import shlex
import subprocess
import sys
import time

import pytest
from f2i_bench.devices.android.device_folders import PREFIX, cache_identity, remote_folder, sweep_device

MAKER = """
import sys, time
from device_shell import Shell
from f2i_bench.devices.android.device_folders import remote_folder
with remote_folder(Shell(), sys.argv[1]) as remote:
    print(remote, flush=True)
    time.sleep(60)
"""


class Shell:
    """Speaks as a device's shell does; see ``MAKER`` for the same in another process."""

    def shell(self, command, seconds=60):
        return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, timeout=seconds).stdout


@pytest.fixture
def storage(tmp_path, monkeypatch):
    monkeypatch.setenv("F2I_CACHE", str(tmp_path / "cache"))
    (tmp_path / "device_shell.py").write_text(
        "import subprocess\nclass Shell:\n"
        "    def shell(self, command, seconds=60):\n"
        "        return subprocess.run(['sh', '-c', command], capture_output=True, text=True, check=True).stdout\n"
    )
    folder = tmp_path / "storage"
    folder.mkdir()
    return folder


@pytest.fixture
def maker(storage, tmp_path):
    """Another process of this computer that has a folder on the device and waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(storage)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    yield process, process.stdout.readline().strip()
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folder_is_there_for_the_block_and_no_sweep_takes_it(storage):
    with remote_folder(Shell(), str(storage)) as remote:
        sweep_device(Shell(), str(storage))
        assert os.path.isdir(remote) and os.path.basename(remote).startswith(f"{PREFIX}{cache_identity()}-device-")
    assert os.listdir(storage) == []


def test_a_live_maker_s_folder_stays_and_a_dead_one_s_goes_with_what_runs_in_it(storage, maker):
    process, remote = maker
    sweep_device(Shell(), str(storage))
    assert os.path.isdir(remote)
    running = subprocess.Popen(["sleep", "60"], start_new_session=True)
    with open(os.path.join(remote, "pid"), "w") as file:
        file.write(str(running.pid))
    process.kill()
    process.wait()
    sweep_device(Shell(), str(storage))
    assert os.listdir(storage) == [] and running.wait(timeout=10) == -9


def test_another_cache_s_folder_stays_unless_it_is_old_and_idle(storage):
    young, old, busy = (storage / f"{PREFIX}elsewhere-device-{k}" for k in "abc")
    for folder in (young, old, busy):
        folder.mkdir()
    (busy / "pid").write_text(str(os.getpid()))
    long_ago = time.time() - 3 * 24 * 3600
    for folder in (old, busy):
        os.utime(folder, (long_ago, long_ago))
    sweep_device(Shell(), str(storage))
    assert sorted(os.listdir(storage)) == [young.name, busy.name]


def test_two_caches_have_two_names_and_one_keeps_its_own(storage, tmp_path, monkeypatch):
    first = cache_identity()
    assert cache_identity() == first and shlex.quote(first) == first
    monkeypatch.setenv("F2I_CACHE", str(tmp_path / "other"))
    assert cache_identity() != first
