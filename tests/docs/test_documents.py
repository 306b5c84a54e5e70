"""The documents say what is there: commands parse, options, modules, make targets, files and links exist."""

import importlib.util
import re
import shlex

import pytest
from repository import ROOT
from typer.main import get_command

import f2i
from f2i.cli import app

OUTSIDE = {"--encoder", "--shapes", "--f2i-bundle", "--num_processes", "--extra-index-url", "--ablation", "--pictures"}
"""Options of other programs (new_student, shapes, pytest, accelerate, pip, score_sets) that the documents name by themselves."""
FOLDERS = ("runtime_py", "quantize", "export", "benchmarks", "f2i", "tests", "docs", "examples")


def documents():
    """Every document that a person reads, from the repository's root."""
    rooms = [ROOT / folder / "README.md" for folder in (*FOLDERS[:6], "examples/ci-project", "quantize/f2i_quantize/runs")]
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *rooms])


DOCUMENTS = [pytest.param(path, id=str(path.relative_to(ROOT))) for path in documents()]
each_document = pytest.mark.parametrize("path", DOCUMENTS)


def code_lines(text):
    """The lines of indented and fenced code blocks, without their indentation."""
    fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()


def inline_code(text):
    """The code spans of the text outside of code blocks. A span may go over the end of a line."""
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]


@pytest.fixture(scope="module")
def group():
    return get_command(app)


@pytest.fixture(scope="module")
def parent(group):
    return group.make_context("f2i", [], resilient_parsing=True)


def parse(group, parent, line):
    """Parses one line as the program would, without running it; whatever the shell does after the command is left out."""
    words = shlex.split(re.split(r"\s(?:\|\|?|&&|>>?|2>)\s", line)[0], comments=True)
    assert words[1] in group.list_commands(parent), f"no such command: {line}"
    if "--help" not in words:
        group.get_command(parent, words[1]).make_context(words[1], words[2:], parent=parent)


def options_of(group, parent, name):
    return {option for parameter in group.get_command(parent, name).params for option in parameter.opts} | {"--help"}


@each_document
def test_every_command_line_parses(path, group, parent):
    for line in code_lines(path.read_text()):
        if line.startswith("f2i ") and not line.startswith(("f2i --", "f2i COMMAND")) and "─" not in line and "  the command" not in line:
            parse(group, parent, line)


def test_every_example_in_the_help_parses(group, parent):
    examples = {name: re.findall(r"`(f2i [^`]+)`", group.get_command(parent, name).help) for name in group.list_commands(parent)}
    for name, lines in examples.items():
        assert lines, f"f2i {name} --help has no example"
        for line in lines:
            parse(group, parent, line)


def test_every_command_line_of_the_makefile_parses(group, parent):
    lines = re.findall(r"\$\(BIN\)/(f2i .+)", (ROOT / "Makefile").read_text())
    assert lines
    for line in lines:
        parse(group, parent, line)


@each_document
def test_every_option_named_in_the_text_exists(path, group, parent):
    commands = group.list_commands(parent)
    every = set.union(*(options_of(group, parent, name) for name in commands)) | OUTSIDE
    for span in inline_code(path.read_text()):
        words = span.split()
        if words[0] == "f2i" and len(words) > 1 and words[1][0].islower():
            assert words[1] in commands, f"no such command: {span}"
            known = options_of(group, parent, words[1])
        elif words[0].startswith("--"):
            known = every
        else:
            continue
        unknown = {word.split("=")[0] for word in words if word.startswith("--")} - known
        assert not unknown, f"{span}: no such option"


@each_document
def test_every_module_that_is_run_or_imported_exists(path):
    text = path.read_text()
    names = re.findall(r"(?:-m |from )(f2i[\w.]*)", text)
    for name in names:
        assert importlib.util.find_spec(name), f"{path.name} names {name}"
    for name in re.findall(r"\bf2i\.(\w+)\(", text):
        assert name in f2i.__all__, f"{path.name} calls f2i.{name}"


@each_document
def test_every_make_target_exists(path):
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    lines = [*code_lines(path.read_text()), *inline_code(path.read_text())]
    named = {line.split()[1] for line in lines if re.match(r"make [a-z]", line)}
    assert named <= targets


@each_document
def test_every_link_leads_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), f"{link} is not there"
        if anchor and target.suffix == ".md":
            slugs = {
                re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
                for title in re.findall(r"^#+ (.+)", target.read_text(), re.MULTILINE)
            }
            assert anchor in slugs, f"{link}: {target.name} has no such heading"


@each_document
def test_every_file_named_in_the_text_exists(path):
    if path.name == "CHANGELOG.md":  # tells what was there once
        return
    for span in inline_code(path.read_text()):
        if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./-]+", span):
            assert (ROOT / span).exists() or (path.parent / span).exists(), f"{path.name} names {span}"


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) <= 70
