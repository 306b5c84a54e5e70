"""``pytest --f2i-bundle DIR``: every gate of a bundle as a test of its own. Installed as a pytest plugin; does nothing without the option."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from f2i.result_views import gate_line

if TYPE_CHECKING:
    from f2i_runtime.validation.results import Gate

MANIFEST = "manifest.json"
PROPERTIES = ("target", "precision", "accelerator", "component", "image", "figure", "value", "limit", "detail")
"""Fields of a gate that become properties of its test, in JUnit XML."""


class GateFailedError(Exception):
    """A gate that failed."""


class GateItem(pytest.Item):
    """One gate, measured while tests were collected."""

    def __init__(self, *, gate: Gate, bundle: Path, **options: Any) -> None:
        super().__init__(**options)
        self.gate, self.bundle = gate, bundle
        self.user_properties += [(name, getattr(gate, name)) for name in PROPERTIES]

    def runtest(self) -> None:
        """Raises :class:`GateFailedError` with the figure and its limit when the gate failed."""
        if not self.gate.passed:
            raise GateFailedError(gate_line(self.gate))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        """Returns one line instead of a traceback."""
        return str(excinfo.value)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Returns what pytest shows in its own lists."""
        return self.bundle / MANIFEST, None, self.name


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options of this plugin."""
    group = parser.getgroup("f2i", "F2I mobile bundles")
    group.addoption(
        "--f2i-bundle", action="append", default=[], metavar="DIR", help="Validate this bundle; each gate is a test. Repeatable."
    )
    group.addoption("--f2i-images", metavar="DIR", help="A folder of photos to validate with. Default: the photos that scikit-image ships.")
    group.addoption("--f2i-target", metavar="NAME", help="Validate only this target.")
    group.addoption("--f2i-precision", metavar="NAME", help="Validate only this precision.")
    group.addoption(
        "--f2i-num-tiles", type=int, default=16, metavar="N", help="The number of tiles that each component is compared on (default 16)."
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Validate the bundles and add their gates, before -k and -m choose among the tests."""
    for folder in config.getoption("--f2i-bundle"):
        bundle = Path(folder)
        for gate in _gates(bundle, config):
            nodeid = f"{os.path.relpath(bundle / MANIFEST, config.rootpath)}::{gate.id}"
            items.append(GateItem.from_parent(session, name=gate.id, nodeid=nodeid, gate=gate, bundle=bundle))


def _gates(bundle: Path, config: pytest.Config) -> tuple[Gate, ...]:
    from f2i_runtime.bundle.store import open_bundle
    from f2i_runtime.errors import F2IError
    from f2i_runtime.validation.validate import validate
    from f2i_runtime.validation.validate_options import ValidateOptions

    images = config.getoption("--f2i-images")
    options = ValidateOptions(
        images=Path(images) if images else None,
        target=config.getoption("--f2i-target"),
        precision=config.getoption("--f2i-precision"),
        tiles=config.option.f2i_num_tiles,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the engines' own, which a project with warnings as errors must not fall over
        try:
            return validate(open_bundle(bundle), options).gates
        except F2IError as e:
            raise pytest.UsageError(str(e)) from e
