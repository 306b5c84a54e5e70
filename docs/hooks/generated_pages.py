"""MkDocs hook: adds the pages that are made at every build, so that none of them can be out of date.

- ``command.md`` from the Typer application, ``python.md`` from the public functions, ``schemas.md`` from ``docs/schemas/*.json``;
- the documents that lie elsewhere in the repository, with their links turned into links of the site.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from command_reference import command_page
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from python_reference import python_page
from schema_reference import schema_page

DOCUMENTS = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "MODEL_CARD.md": "model-card.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "runtime_py/README.md": "room-runtime_py.md",
    "quantize/README.md": "room-quantize.md",
    "export/README.md": "room-export.md",
    "benchmarks/README.md": "room-benchmarks.md",
    "f2i/README.md": "room-f2i.md",
    "tests/README.md": "room-tests.md",
    "quantize/f2i_quantize/runs/README.md": "training-runs.md",
    "runtime_py/f2i_runtime/mil/conformance/CONFORMANCE.md": "conformance.md",
    "benchmarks/f2i_bench/devices/apple/README.md": "apple.md",
    "examples/ci-project/README.md": "example-project.md",
}
"""Documents outside ``docs/``, and the page of the site that each becomes."""
LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages to those in ``docs/``."""
    root = Path(config.config_file_path).parent
    pages = {"command.md": command_page(), "python.md": python_page(), "schemas.md": schema_page(root / "docs" / "schemas")}
    pages |= {page: with_site_links((root / path).read_text(encoding="utf-8"), path, DOCUMENTS) for path, page in DOCUMENTS.items()}
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """A page of ``docs/`` with its links to documents elsewhere in the repository turned into links of the site."""
    if page.file.generated_by:
        return markdown
    return with_site_links(markdown, f"docs/{page.file.src_uri}", DOCUMENTS)


def with_site_links(text: str, path: str, documents: Mapping[str, str]) -> str:
    """Returns the Markdown ``text`` of the document at ``path`` (from the repository's root) with links to other documents as the site has them."""

    def on_site(found: re.Match[str]) -> str:
        link = found[1]
        if ":" in link:
            return link
        target = posixpath.normpath(PurePosixPath(path).parent / link)
        return documents.get(target, target.removeprefix("docs/"))

    return LINK.sub(on_site, text)
