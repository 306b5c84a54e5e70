"""The process that a variant is measured in: it holds that variant's engine alone, so that its memory and its threads are its own.

Reads one JSON request a line on stdin and answers with one JSON line on its original stdout; whatever an engine prints goes to stderr.
Requests: ``import``, ``open``, ``run``, ``profile``, ``photo``, ``upscale``, ``overhead``, ``limit``, ``cost``. An answer is ``{"ok": ...}`` or
``{"error": "one line"}``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from f2i_runtime.bundle.manifest import Call
from f2i_runtime.bundle.store import Bundle, load_array, open_bundle
from f2i_runtime.engines.session import Session, engine_adapter, installed, open_session
from f2i_runtime.errors import F2IError, UsageError
from f2i_runtime.memory import peak_rss
from f2i_runtime.pipeline import Pipeline, open_pipeline
from f2i_runtime.targets import Variant, target_of

from f2i_bench.host.photo_predictor import RepeatPipeline, time_photo


class OpenVariant:
    """One variant of a bundle with its sessions, and a golden case as its input."""

    def __init__(self, bundle: Bundle, variant: Variant, threads: int, slowdown: float) -> None:
        self.bundle, self.variant, self.threads, self.slowdown = bundle, variant, threads, slowdown
        self.sessions: dict[str, Session] = {}
        self.feeds: dict[str, dict[str, np.ndarray]] = {}

    def open(self) -> dict[str, Any]:
        """Load every component: ``{"engine", "load_ns": {component}}``."""
        load, feeds = {}, golden_inputs(self.bundle)
        import_engine(self.variant)
        for name in self.components():
            path, shapes = self.artifact(name)
            began = time.perf_counter_ns()
            self.sessions[name] = open_session(self.variant, path, component=name, inputs=shapes, threads=self.threads)
            load[name] = time.perf_counter_ns() - began
            self.feeds[name] = feeds[name]
        return {"engine": next(iter(self.sessions.values())).engine, "load_ns": load}

    def components(self) -> list[str]:
        """Names in the order of the dataflow."""
        return list(dict.fromkeys(call.component for call in self.bundle.manifest.dataflow))

    def artifact(self, name: str) -> tuple[Path, dict[str, tuple[int, ...]]]:
        """The checked file of a component, and its inputs' shapes."""
        component = self.bundle.manifest.components[name]
        path = self.bundle.artifact_path(self.bundle.manifest.artifact(name, self.variant))
        return path, {k: tuple(spec.shape) for k, spec in component.inputs.items()}

    def run(self, component: str, times: int, seconds: float) -> list[int]:
        """Latencies in ns of at most ``times`` runs, no new one begun after ``seconds``."""
        session, feed = self.sessions[component], self.feeds[component]
        latencies: list[int] = []
        end = time.perf_counter() + seconds
        while len(latencies) < times and (not latencies or time.perf_counter() < end):
            began = time.perf_counter_ns()
            session.run(feed)
            spent = time.perf_counter_ns() - began
            if self.slowdown:
                time.sleep(self.slowdown * spent / 1e9)
                spent = time.perf_counter_ns() - began
            latencies.append(spent)
        return latencies

    def profile(self, component: str) -> list[dict[str, Any]] | None:
        """The engine's own profile of one run, by kind of operator; None where the engine gives none."""
        adapter = target_of(self.variant).profile
        if adapter is None:
            return None
        path, _ = self.artifact(component)
        found: list[dict[str, Any]] = adapter.load(f"the profile of {self.variant}").profile_ops(
            path, self.feeds[component], threads=self.threads
        )
        return found


def import_engine(variant: Variant) -> None:
    """Starts the library itself, which is not part of the model's load time."""
    if installed(variant):
        engine_adapter(variant).load(f"the {variant.target} engine")


def golden_inputs(bundle: Bundle) -> dict[str, dict[str, np.ndarray]]:
    """Returns the inputs of every component's first call, from the bundle's first golden case. Raises UsageError when it has none."""
    first = {call.component: call for call in reversed(bundle.manifest.dataflow)}
    return {component: call_inputs(bundle, call) for component, call in first.items()}


def call_inputs(bundle: Bundle, call: Call) -> dict[str, np.ndarray]:
    """Returns the inputs of one call, whose output is the golden tensor of its result. Raises UsageError when the bundle has no golden case."""
    if not bundle.manifest.golden:
        raise UsageError(f"{bundle.root}: it holds no golden vectors to run on; export it again")
    records = bundle.manifest.golden[0].tensors | bundle.manifest.constants
    return {argument: load_array(bundle.check(records[tensor])) for argument, tensor in call.inputs.items()}


def answer(request: dict[str, Any], state: dict[str, OpenVariant]) -> Any:
    """Answers one request."""
    match request["do"]:
        case "open":
            state["variant"] = OpenVariant(open_bundle(Path(request["bundle"])), _variant(request), request["threads"], request["slowdown"])
            return state["variant"].open()
        case "import":
            return import_engine(_variant(request))
        case "run":
            latencies = state["variant"].run(request["component"], request["times"], request["seconds"])
            return {"ns": latencies, "peak_rss_bytes": peak_rss()}
        case "profile":
            return state["variant"].profile(request["component"])
        case "photo":
            v = state["variant"]
            constants = {name: v.bundle.constant(name) for name in v.bundle.manifest.constants}
            pipeline = Pipeline(v.bundle, v.variant, v.sessions, constants)
            return time_photo(pipeline, request["megapixels"]) | {"peak_rss_bytes": peak_rss()}
        case "upscale":
            from f2i_bench.suites.scale import MeteredPipeline, upscale_metered

            b = open_bundle(Path(request["bundle"]))
            opened = open_pipeline(b, _variant(request), request["threads"])
            metered = MeteredPipeline(b, opened.variant, opened.sessions, opened.constants)
            return upscale_metered(metered, Path(request["photo"]), Path(request["out"])) | {"peak_rss_bytes": peak_rss()}
        case "overhead":
            nothing = RepeatPipeline(open_bundle(Path(request["bundle"])), Variant("none", "none"), {}, {})
            return time_photo(nothing, request["megapixels"]) | {"peak_rss_bytes": peak_rss()}
        case "limit":
            from f2i_bench.host.limits import measure_limit

            return measure_limit(request["threads"], request["seconds"]).model_dump()
        case "cost":
            from f2i_bench.host.graph_cost import graph_cost

            cost = graph_cost(Path(request["program"]))
            return {"layers": dict(cost.layers)}
        case other:
            raise UsageError(f"request {other!r} is unknown")


def _variant(request: dict[str, Any]) -> Variant:
    return Variant(request["target"], request["precision"], request["accelerator"])


def main() -> None:
    """Answers requests until stdin ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    state: dict[str, OpenVariant] = {}
    for line in sys.stdin:
        try:
            reply = {"ok": answer(json.loads(line), state)}
        except F2IError as e:
            reply = {"error": str(e)}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
