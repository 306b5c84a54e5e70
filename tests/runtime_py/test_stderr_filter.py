"""What engines write to the process's own stderr, past Python."""

import os

import pytest
from f2i_runtime.stderr_filter import drop_engine_logs

LINES = b"INFO: Created delegate.\n[threadpool.cpp:66] Resetting.\nit matters\n"


def test_lines_that_say_nothing_are_dropped_and_others_arrive(monkeypatch, capfd):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    with drop_engine_logs():
        os.write(2, LINES)
    assert capfd.readouterr().err == "it matters\n"
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_everything_arrives_after_an_error_and_where_it_is_wanted(monkeypatch, capfd):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    with pytest.raises(RuntimeError), drop_engine_logs():
        os.write(2, LINES)
        raise RuntimeError
    assert capfd.readouterr().err == LINES.decode()
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    with drop_engine_logs():
        os.write(2, LINES)
    assert capfd.readouterr().err == LINES.decode()
