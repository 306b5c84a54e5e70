"""The site: a strict build, complete references, and nothing that a browser would fetch from elsewhere."""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading

import pytest
from browser import launch_options
from playwright.sync_api import sync_playwright
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


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files and writes no log."""

    def log_message(self, *_):
        """Writes nothing."""


@pytest.fixture
def served(site):
    """The site's address on this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_pages_fit_a_phone_and_a_desktop_without_errors(served):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**launch_options(playwright))
        for width, scheme in ((390, "light"), (1440, "dark")):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            asked, wrong = [], []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.on("pageerror", lambda error, wrong=wrong: wrong.append(str(error)))
            for name in ("index", "measurements", "command", "schemas", "conformance"):
                page.goto(f"{served}/{name}.html", wait_until="networkidle")
                assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, f"{name} at {width} px"
            assert not wrong
            assert not [url for url in asked if not url.startswith((served, "data:"))]
        browser.close()
