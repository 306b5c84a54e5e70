"""pytest plugin of :mod:`f2i_runtime.mil.conformance.harness`: coremltools' operation tests, judged with the evaluator in Core ML's place.

Loaded with ``-p f2i_runtime.mil.conformance.coremltools_plugin`` in a process of its own, because it changes coremltools' idea of the system: the tests
compare numbers only where they think they run on macOS. It also tightens every comparison that is looser than ``--mil-tolerance``: for fp16
coremltools itself allows 0.5 absolute, which a wrong formula passes.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from f2i_runtime.mil.conformance.mutate import mutated
from f2i_runtime.mil.conformance.outcomes import OUT_OF_TIME
from f2i_runtime.mil.ops import optable
from f2i_runtime.mil.predict import Proxy, install

_MACOS = (15, 3)
TIGHTEST = 1e-3
"""The smallest tolerance that is set. Some float32 rows of coremltools compare with an expectation that was computed in fp16."""
HUGE = 1e30
"""Stands for an infinite error, which JSON cannot hold."""
_RANDOM_OPERATIONS = frozenset({"random_bernoulli", "random_categorical", "random_normal", "random_uniform"})


class RecordingProxy(Proxy):
    """Records which operations are in the models of the running test, and whether a result was compared."""

    operations: ClassVar[set[str]] = set()
    predicted: ClassVar[int] = 0
    errors: ClassVar[list[float]] = []
    old_format: ClassVar[bool] = False

    def __init__(self, path: str, *arguments: Any) -> None:
        from f2i_runtime.mil.format.package import Package
        from f2i_runtime.mil.format.program import decode, function_names

        if not Path(path).is_dir():
            RecordingProxy.old_format = True
            raise RuntimeError("not an ML Program")
        with Package(Path(path)) as package:
            for name in function_names(package):
                RecordingProxy.operations |= {operation.type for operation in decode(package, name).body.walk()}
        super().__init__(path, *arguments)

    def predict(self, data: Any, state: Any = None) -> dict[str, Any]:
        """Does what the base class does, and counts the call."""
        result = super().predict(data, state)
        RecordingProxy.predicted += 1
        return result


class _Numpy:
    """``numpy`` as coremltools' test helpers see it: after a failed comparison they count mismatches with their own loose tolerance."""

    def __init__(self, limit: float) -> None:
        self._limit = limit

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def isclose(self, actual: Any, desired: Any, rtol: float = 1e-5, atol: float = 1e-8, **options: Any) -> Any:
        rtol, atol = (min(max(tolerance, TIGHTEST), self._limit) for tolerance in (rtol, atol))
        return np.isclose(actual, desired, rtol=rtol, atol=atol, **options)


def _comparison(limit: float) -> Any:
    """``numpy.testing.assert_allclose`` that, once a test has predicted, allows at most ``limit`` and notes the error it saw."""
    original = np.testing.assert_allclose

    def assert_allclose(actual: Any, desired: Any, rtol: float = 1e-7, atol: float = 0.0, **options: Any) -> None:
        if RecordingProxy.predicted:
            rtol, atol = (min(max(tolerance, TIGHTEST), limit) for tolerance in (rtol, atol))
            RecordingProxy.errors.append(needed_tolerance(actual, desired))
        original(actual, desired, rtol=rtol, atol=atol, **options)

    return assert_allclose


def needed_tolerance(actual: Any, desired: Any) -> float:
    """The smallest t for which |actual - desired| ≤ t + t·|desired| everywhere; infinite where shapes, NaNs or infinities differ."""
    got, want = (np.asarray(value, np.float64) for value in (actual, desired))
    try:
        got, want = np.broadcast_arrays(got, want)
    except ValueError:
        return float("inf")
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    with np.errstate(invalid="ignore"):
        errors = np.where(same, 0.0, np.abs(got - want) / (1 + np.abs(want)))
    return float(np.nan_to_num(errors, nan=np.inf).max(initial=0.0))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mil", "conformance of the ML Program evaluator")
    group.addoption("--mil-sample", type=int, default=0, help="tests taken per test function and named parameter (0: all)")
    group.addoption("--mil-seed", type=int, default=0, help="seed of the sample")
    group.addoption("--mil-tolerance", type=float, default=1e-2, help="loosest absolute and relative tolerance")
    group.addoption("--mil-results", default="", help="file to append one JSON line per test to; tests it holds are not run again")
    group.addoption("--mil-minutes", type=float, default=0, help="start no test after this time (0: no limit); the order is then shuffled")
    group.addoption("--mil-mutants", default="", help="JSON file, test id → operation whose results that test sees wrong by 1 %%")


def pytest_configure(config: pytest.Config) -> None:
    import torch

    torch.set_num_threads(1)
    install(replace_native=True, proxy=RecordingProxy)
    limit = config.option.mil_tolerance
    np.testing.assert_allclose = _comparison(limit)
    for name in ("converters.mil.testing_utils", "converters.mil.frontend.torch.test.testing_utils"):
        module: Any = importlib.import_module(f"coremltools.{name}")
        module._IS_MACOS = True
        module.np = _Numpy(limit)
    for name in ("models.utils", "models.model"):
        system: Any = importlib.import_module(f"coremltools.{name}")
        system._is_macos, system._macos_version = (lambda: True), (lambda: _MACOS)
    config.stash[_DEADLINE] = time.monotonic() + 60 * (config.getoption("--mil-minutes") or 1e6)
    mutants = config.getoption("--mil-mutants")
    config.stash[_MUTANTS] = json.loads(Path(mutants).read_text()) if mutants else {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = [item for item in items if not _neural_network(item)]
    size = config.getoption("--mil-sample")
    if size:
        groups: dict[tuple[str, ...], list[pytest.Item]] = collections.defaultdict(list)
        for item in chosen:
            groups[_kind(item)].append(item)
        generator = random.Random(config.getoption("--mil-seed"))
        kept = {id(item) for group in groups.values() for item in (group if len(group) <= size else generator.sample(group, size))}
        chosen = [item for item in chosen if id(item) in kept]
    if config.getoption("--mil-minutes"):
        random.Random(config.getoption("--mil-seed")).shuffle(chosen)
    mutants = config.stash[_MUTANTS]
    chosen = [item for item in chosen if not mutants or test_id(item) in mutants]
    results = Path(config.option.mil_results)
    done = {json.loads(line)["test"] for line in results.read_text().splitlines()} if results.is_file() else set()
    chosen = [item for item in chosen if test_id(item) not in done]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen


def _kind(item: pytest.Item) -> tuple[str, ...]:
    """Returns the name of a test function with the names among its parameters. One function tests all element-wise operations, each of which is a
    parameter.
    """
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return item.nodeid.split("[")[0], *(value for _, value in sorted(parameters.items()) if isinstance(value, str))


def _neural_network(item: pytest.Item) -> bool:
    """Returns whether the test is about the old model format, which contains no ML Program."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    backend = parameters.get("backend")
    return backend is not None and "neuralnetwork" in (
        getattr(backend, "backend", ""),
        *(backend if isinstance(backend, (tuple, list)) else ()),
    )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    RecordingProxy.operations = set()
    RecordingProxy.predicted = 0
    RecordingProxy.errors = []
    RecordingProxy.old_format = False
    item.stash[_STARTED] = time.perf_counter()
    operation = item.config.stash[_MUTANTS].get(test_id(item))
    with mutated(operation) if operation else contextlib.nullcontext():
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.monotonic() > item.config.stash[_DEADLINE]:
        item.session.shouldstop = OUT_OF_TIME
        pytest.skip(OUT_OF_TIME)


_STARTED = pytest.StashKey[float]()
_DEADLINE = pytest.StashKey[float]()
_MUTANTS = pytest.StashKey[dict[str, str]]()


def test_id(item: pytest.Item) -> str:
    """Returns the name of a test, from coremltools' own folder on."""
    return item.nodeid.rsplit("coremltools/", 1)[-1]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    path = item.config.getoption("--mil-results")
    if not path or (report.when != "call" and report.outcome == "passed") or OUT_OF_TIME in _reason(report):
        return
    kinds = sorted(name for name in RecordingProxy.operations if name != "const")
    line = {
        "test": test_id(item),
        "outcome": "xfailed" if hasattr(report, "wasxfail") and report.skipped else report.outcome,
        "when": report.when,
        "predicted": RecordingProxy.predicted,
        "needed": max((min(error, HUGE) for error in RecordingProxy.errors), default=None),
        "old_format": RecordingProxy.old_format,
        "operations": kinds,
        "unclaimed": [name for name in kinds if not claimed(name)],
        "random": bool(_RANDOM_OPERATIONS & set(kinds)) or "test_random" in item.nodeid,
        "seconds": round(time.perf_counter() - item.stash[_STARTED], 2),
        "reason": _reason(report),
    }
    with Path(path).open("a") as file:
        file.write(json.dumps(line) + "\n")


def claimed(operation: str) -> bool:
    """Returns whether the evaluator claims to know ``operation``."""
    return operation in optable.OPERATIONS or operation in optable.CONTROL or operation.startswith("constexpr_")


def _reason(report: pytest.TestReport) -> str:
    if report.outcome == "passed":
        return ""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])[:300]
    crash = getattr(report.longrepr, "reprcrash", None)
    return " ".join(str(crash.message if crash else report.longrepr).split())[:600]
