"""The site: a strict build, complete references, and nothing that a browser would fetch from elsewhere."""

import os
import re
import subprocess
import sys

import pytest
from repository import ROOT
from typer.main import get_command

from f2i.cli import app


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr
    return out


def test_every_command_and_option_is_in_the_reference(site):
    page = (site / "command.html").read_text()
    commands = get_command(app).commands
    assert len(commands) >= 11
    for name, command in commands.items():
        assert f"f2i {name}" in page
        for parameter in command.params:
            assert parameter.opts[0] in page, f"f2i {name} {parameter.opts[0]}"


def test_every_schema_is_in_the_reference(site):
    page = (site / "schemas.html").read_text()
    schemas = sorted((ROOT / "docs" / "schemas").glob("*.json"))
    for path in schemas:
        assert path.name in page
        assert (site / "schemas" / path.name).is_file()


def test_nothing_is_fetched_from_elsewhere(site):
    pages = sorted(site.glob("*.html"))
    assert len(pages) > 20
    for page in pages:
        fetched = re.findall(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=\"?(https?://[^\"\s>]+)", page.read_text())
        assert not fetched, f"{page.name}: {fetched}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?https?:|@import", sheet.read_text()), sheet.name


def test_hooks_are_not_published(site):
    assert not list(site.rglob("*.py"))
