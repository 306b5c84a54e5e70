"""What is printed is what was meant: brackets are no markup, and every command survives a console that knows ASCII only."""

import os
import subprocess
import sys

import pytest
from repository import F2I
from rich.table import Table

from f2i import terminal
from f2i.cli import app
from f2i.progress import Steps
from f2i.terminal import console, expanded

WORD = "photos [edited] [/red] [bold]x[/bold] :camera: 100%"
COMMANDS = ["--help", *(f"{c.name or c.callback.__name__} --help" for c in app.registered_commands), "doctor"]
ASCII = ({"PYTHONIOENCODING": "ascii"}, {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})


def printed(capsys, show):
    for stderr in (False, True):
        show(console(stderr=stderr, width=200))
    said = capsys.readouterr()
    return said.out, said.err


def test_user_text_is_printed_as_it_is_everywhere(capsys):
    def table(target):
        shown = Table(title=WORD, caption=WORD)
        shown.add_column(WORD)
        shown.add_row(WORD)
        target.print(shown, soft_wrap=False)

    def steps(target):
        with Steps(target) as shown:
            shown.count(WORD, 1, 1)

    for show, count in ((lambda target: target.print(WORD), 1), (table, 4), (steps, 1)):
        for text in printed(capsys, show):
            assert text.count(WORD) == count, text


def test_progress_shows_user_text_as_it_is():
    with Steps(console()) as steps:
        steps.bar.add_task(WORD, total=2)
        assert WORD in steps.bar.columns[1].render(steps.bar.tasks[0]).plain


def test_long_paths_are_not_folded(capsys):
    path = "/" + "/".join(["folder"] * 60)
    for text in printed(capsys, lambda target: target.print(f"{path}: 3 files")):
        assert f"{path}: 3 files\n" == text


def test_both_consoles_of_the_commands_are_of_this_kind():
    for shared in (terminal.out, terminal.err):
        assert not shared._markup and not shared._emoji and shared.soft_wrap


def test_doctor_names_the_extra(monkeypatch, capsys):
    from f2i.tables import doctor_table

    data = {"machine": "m", "python": "3", "cores": 1, "free_gib": 1, "memory_gib": 2}
    data |= {"install": {"onnx": {"export": "f2i-mobile[onnx]", "run": "f2i-mobile[run-onnx]"}}, "engine": {"onnx": "x"}}
    data |= {"export": {"onnx": False}, "run": {"onnx": False}}
    console(width=200).print(doctor_table(data), soft_wrap=False)
    said = capsys.readouterr().out
    assert "pip install 'f2i-mobile[onnx]'" in said and "pip install 'f2i-mobile[run-onnx]'" in said


@pytest.mark.parametrize("environment", ASCII, ids=["ascii", "LANG=C"])
def test_commands_survive_an_ascii_console(environment, tmp_path):
    script = f"""
import sys, f2i.cli
for words in {COMMANDS!r}:
    sys.argv = ["f2i", *words.split()]
    try:
        f2i.cli.main()
    except SystemExit as e:
        assert e.code == 0, (words, e.code)
from f2i.terminal import out, err, print_table
from rich.table import Table
table = Table(title="a – b × 2 → c ✅ \\udcff é")
table.add_column("÷")
table.add_row("…")
print_table(table)
err.print("a – b × 2 → c ✅ \\udcff é")
"""
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    result = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, env={**os.environ, **environment}, timeout=300)
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.isascii() and result.stderr.isascii()
    assert b"a - b x 2 -> c (passed) \\udcff \\xe9" in result.stderr


def test_inspect_and_verify_survive_an_ascii_console(bundle_copy):
    (bundle_copy / ".DS_Store").write_text("x")
    (bundle_copy / "onnx" / "Thumbs.db").write_text("x")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for command in ("inspect", "verify"):
        result = subprocess.run([F2I, command, str(bundle_copy)], capture_output=True, text=True, env=environment, timeout=240)
        assert result.returncode == 0, result.stderr
    assert ".DS_Store, onnx/Thumbs.db" in result.stderr
    (bundle_copy / "onnx" / "notes.txt").write_text("x")
    result = subprocess.run([F2I, "verify", str(bundle_copy)], capture_output=True, text=True, timeout=240)
    assert result.returncode == 2 and "notes.txt" in result.stderr


def test_the_home_folder_after_an_equals_sign(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = ["run", "--out=~/x", "--set", "a=~/b", "a~b", "--x=a~b", "--flag"]
    assert expanded(given) == ["run", "--out=/home/me/x", "--set", "a=~/b", "a~b", "--x=a~b", "--flag"]
