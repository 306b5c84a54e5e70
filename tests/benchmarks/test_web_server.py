"""The page's server: what it hands out, what it refuses, and that nothing it gets takes it down or leaves its folder."""

import contextlib
import hashlib
import http.client
import json
import random
import socket
import ssl
import threading

import numpy as np
import pytest
from f2i_bench.bench import end_bench
from f2i_bench.core.protocol import BenchReport, Settings
from f2i_bench.devices.web import web_server
from f2i_bench.devices.web.browser_names import device_name
from f2i_bench.devices.web.web_address import own_certificate, qr_lines
from f2i_bench.devices.web.web_bench import _address
from f2i_bench.devices.web.web_options import WebOptions
from f2i_bench.devices.web.web_plan import make_plan
from f2i_bench.devices.web.web_records import Arrival, plain_text
from f2i_bench.devices.web.web_sessions import MAX_SESSIONS, Native, Sessions
from f2i_runtime.bundle.store import load_array, open_bundle
from f2i_runtime.errors import GateError
from f2i_runtime.targets import EVERYTHING, Variant
from published_schema import assert_fits
from web_client import Client, malformed, result
from web_page import ARRIVAL, server

from f2i.commands.bench_command import _announce


@pytest.fixture
def served(tiny_bundle, tmp_path):
    """(client, sessions, server's folder); everything that the tests leave must lie in that folder."""
    folder = tmp_path / "inside" / "browsers"
    folder.mkdir(parents=True)
    with server(tiny_bundle, folder) as (running, sessions, url):
        yield Client(url), sessions, folder
        assert running.fileno() >= 0
    assert [p.name for p in tmp_path.iterdir()] == ["inside"] and [p.name for p in (tmp_path / "inside").iterdir()] == ["browsers"]


def outputs(bundle, change=lambda name, values: values):
    """A component's name and the bytes of its golden output."""
    manifest = open_bundle(bundle)
    for call in manifest.manifest.dataflow:
        values = load_array(manifest.check(manifest.manifest.golden[0].tensors[call.result]))
        yield call.component, change(call.component, values).astype("<f4").tobytes()


def test_a_phone_gets_the_plan_and_its_results_are_judged_here(served, tiny_bundle, tmp_path):
    client, sessions, _ = served
    plan = json.loads(client.get("plan.json")[2])
    assert [job["label"] for job in plan["jobs"]] == ["LiteRT fp32", "ONNX Runtime fp32"] or len(plan["jobs"]) == 2
    for job in plan["jobs"]:
        for component in job["components"]:
            assert client.get(component["url"])[0] == 200 and all(client.get(i["url"])[0] == 200 for i in component["inputs"])
    session = client.arrive()
    for component, body in outputs(tiny_bundle):
        assert client.post(f"output/{session}/{component}", body)[0] == 200
    status, answer = client.post(f"result/{session}", result())
    assert status == 200 and {row["status"] for row in answer["rows"]} == {"ok"}
    assert client.post(f"end/{session}", b"")[0] == 200 and sessions.all()[0].ended
    report = sessions.report(sessions.all()[0])
    assert report.device.name == "browser on Pixel 8, Android 14 (Chrome 156)" and report.device.browser.relaxed_simd
    assert len(report.rows) == 2 and report.rows[0].median_ns == 10**6 * 3 // 2 and report.rows[0].load_ns == 10**7
    assert_fits("bench", report.as_json())
    assert BenchReport.model_validate(report.as_json()) == report


def test_wrong_outputs_fail_their_gate(served, tiny_bundle):
    client, sessions, _ = served

    def spoil(name, values):
        values = values.copy()
        if name == "unet":
            values.flat[7] = np.nan
        return values if name == "unet" else values * np.float32(1.01)

    session = client.arrive()
    for component, body in outputs(tiny_bundle, spoil):
        client.post(f"output/{session}/{component}", body)
    rows = {row["component"]: row for row in client.post(f"result/{session}", result())[1]["rows"]}
    assert rows["feature_encoder"]["status"] == rows["unet"]["status"] == "gate failed"
    assert "limit 90" in rows["feature_encoder"]["reason"] and "NaN" in rows["unet"]["reason"] and rows["unet"]["sqnr_db"] is None
    with pytest.raises(GateError):
        end_bench([sessions.report(sessions.all()[0])])


def test_outputs_are_compared_with_this_machine_s_own(tiny_bundle, tmp_path):
    """The same file must give the same numbers in the browser, nearer than its gate against the reference asks."""
    own = tmp_path / "own"
    own.mkdir()
    for (_, body), name in zip(outputs(tiny_bundle), ("context", "sr"), strict=True):
        values = np.frombuffer(body, "<f4")
        shape = (1, 3, 64, 64) if name == "sr" else (1, -1, values.size // 4) if values.size % 4 else (values.size,)
        np.save(own / f"out-{name}.npy", values.reshape(shape))
    bundle = open_bundle(tiny_bundle)
    for call in bundle.manifest.dataflow:
        shape = bundle.manifest.components[call.component].output_spec.shape
        np.save(own / f"out-{call.result}.npy", np.load(own / f"out-{call.result}.npy").reshape(shape))
    variant = next(v for v in bundle.manifest.variants() if v.precision == "fp32" and v.target == "tflite")
    natives = {v: Native(own, {("unet", 1): 500_000}) for v in (variant, Variant("onnx", "fp32"))}
    (tmp_path / "browsers").mkdir()
    with server(tiny_bundle, tmp_path / "browsers", natives=natives) as (_, _, url):
        client = Client(url)
        for factor, expected in ((1, "ok"), (1 + 2e-5, "gate failed")):
            session = client.arrive()
            for component, body in outputs(tiny_bundle, lambda _, values, by=factor: values * np.float32(by)):
                client.post(f"output/{session}/{component}", body)
            rows = client.post(f"result/{session}", result())[1]["rows"]
            assert {row["status"] for row in rows} == {expected}, rows
            assert rows[1]["native_ns"] == 500_000 and rows[0]["native_ns"] is None


def test_a_page_that_is_closed_costs_its_own_rows_only(served, tiny_bundle):
    client, sessions, _ = served
    away = client.arrive(asked=[(0, "wasm", 1), (1, "wasm", 1)], model="Away")
    there = client.arrive()
    for session in (away, there):
        for component, body in outputs(tiny_bundle):
            client.post(f"output/{session}/{component}", body)
        client.post(f"result/{session}", result())
    first, second = (sessions.report(s) for s in sessions.all())
    assert [r.status for r in first.rows] == ["ok", "ok", "failed", "failed"] and "closed" in first.rows[3].reason
    assert [r.status for r in second.rows] == ["ok", "ok"] and (first.device.serial, second.device.serial) == ("browser-1", "browser-2")
    end_bench([first, second])


def test_an_engine_that_fails_says_so_in_its_rows(served):
    client, *_ = served
    session = client.arrive()
    items = [i | {"error": "no backend found \x1b]0;title\x07", "load_ns": None, "rounds": []} for i in result()["items"]]
    rows = client.post(f"result/{session}", result(items=items))[1]["rows"]
    assert {(r["status"], r["reason"]) for r in rows} == {("failed", "no backend found ]0;title")}


def test_only_the_page_and_the_bundle_are_handed_out(served, tiny_bundle):
    client, _, _ = served
    status, headers, page = client.get("")
    assert status == 200 and b"<h1>" in page
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin" and headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert headers["Referrer-Policy"] == "no-referrer" and "connect-src 'self'" in headers["Content-Security-Policy"]
    secret = (tiny_bundle / "manifest.json").read_bytes()[:40]
    for path in ("..", "../", "%2e%2e/manifest.json", "../../manifest.json", "manifest.json", "page.css/..", "./page.css", "//etc/passwd",
                 "reference/unet.pt2", "npm/", "model/", "model/0/../0/unet.onnx", "page.css\\", "page.css%00", "PAGE.CSS", "engine_worker.js/"):  # fmt: skip
        status, _, body = client.get(path)
        assert status == 404 and secret not in body, path
    for path in (
        "/",
        "",
        "/plan.json",
        client.base[:-2] + "/plan.json",
        client.base.upper() + "plan.json",
        "//x" + client.base,
    ):
        status, _, body = client.ask("GET", path or "*")
        assert status in (404, 400) and b"tiny" not in body, path


@pytest.mark.parametrize("seed", range(4))
def test_a_thousand_malformed_requests_are_refused(served, tiny_bundle, seed):
    """In four parts of 250: refused, nothing is written, and an honest phone is served afterwards as before."""
    client, sessions, folder = served
    session = client.arrive(asked=[(0, "wasm", 1)])
    before = {p: p.stat().st_size for p in folder.rglob("*")}
    draw, answered = random.Random(seed), 0
    for k in range(250):
        request = malformed(draw, client, session)
        status, _, answer = client.ask(*request)
        assert status == 0 or (400 <= status < 600 and status != 500), (k, request[:2], status, answer[:200])
        assert b"Traceback" not in answer
        answered += status != 0
    assert answered > 150
    assert {p: p.stat().st_size for p in folder.rglob("*")} == before and len(sessions.all()) == 1
    for component, body in outputs(tiny_bundle):
        assert client.post(f"output/{session}/{component}", body)[0] == 200
    assert client.post(f"result/{session}", result())[0] == 200


RAW = (b"", b"\r\n", b"GET", b"GET / HTTP/9.9\r\n\r\n", b"GET /\r\n", b"\x16\x03\x01" + b"\x00" * 60, b"A" * 70_000, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 300,
       b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", b"GET /\x00 HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"y" * 70_000)  # fmt: skip


@pytest.mark.parametrize("sent", RAW, ids=range(len(RAW)))
def test_bytes_that_are_no_request_are_refused(served, sent):
    client, _, _ = served
    with contextlib.suppress(ConnectionError), socket.create_connection((client.host, client.port), timeout=30) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        assert b" 200 " not in answer.split(b"\r\n")[0]
    assert client.get("plan.json")[0] == 200


def test_slow_clients_are_cut_and_cost_nobody_else(served, monkeypatch):
    monkeypatch.setattr(web_server, "REQUEST_SECONDS", 1.0)
    client, _, _ = served
    head = f"POST {client.base}browser HTTP/1.1\r\nContent-Length: 100\r\n\r\n".encode()
    starts = [b"", b"GET /", b"GET / HTTP/1.1\r\nHost", head, head + b"{"] * 6
    slow = [socket.create_connection((client.host, client.port), timeout=30) for _ in starts]
    try:
        for connection, start in zip(slow, starts, strict=True):
            connection.sendall(start)
        assert client.get("plan.json")[0] == 200
        for connection in slow:
            # Cut, or refused because the body ended early; never left open.
            with contextlib.suppress(ConnectionError):
                assert b" 200 " not in connection.recv(1 << 16)
    finally:
        for connection in slow:
            connection.close()
    assert client.get("plan.json")[0] == 200


def test_connections_and_browsers_have_a_limit(served, monkeypatch):
    monkeypatch.setattr(web_server, "MAX_OF_ONE", 8)
    client, sessions, _ = served
    held = [socket.create_connection((client.host, client.port), timeout=30) for _ in range(20)]
    refused = 0
    for connection in held[8:]:
        with contextlib.suppress(ConnectionError):
            refused += connection.recv(1) == b""
    for connection in held:
        connection.close()
    assert refused >= 10
    threads = [threading.Thread(target=lambda: client.post("browser", {"arrival": ARRIVAL, "asked": []})) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.setattr(web_server, "MAX_OF_ONE", 96)
    answers = [client.post("browser", {"arrival": ARRIVAL, "asked": []})[0] for _ in range(MAX_SESSIONS + 3)]
    assert answers[-1] == 400 and len(sessions.all()) == MAX_SESSIONS


@pytest.mark.parametrize(
    ("agent", "model", "name"),
    [
        ("Mozilla/5.0 (Android 13; Mobile; rv:140.0) Gecko/140.0 Firefox/140.0", "", "browser on Android 13 (Firefox 140)"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) Version/18.1 Mobile/15E148 Safari/604.1", "", "browser on iOS 18.1 (Safari 18.1)"),
        ("(Linux; Android 10; K) SamsungBrowser/27.0 Chrome/125.0 Mobile Safari/537.36", "SM-1", "browser on SM-1, Android 10 (Samsung Internet 27)"),
        ("curl/8", "", "browser on Android (an unknown browser)"),
    ],
)  # fmt: skip
def test_browsers_are_called_by_their_names(agent, model, name):
    assert device_name(Arrival(**ARRIVAL | {"user_agent": agent, "model": model})) == name


def test_text_of_strangers_cannot_steer_a_terminal():
    assert plain_text("a\x1b[31m\nb\u202ec\u200bd \x00 é日本") == "a [31m b c d é日本"


def test_a_qr_code_holds_the_address():
    lines = qr_lines("http://192.168.0.7:8080/abcdefghijklmnopqrstuv/")
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) in (2 * len(lines), 2 * len(lines) - 1)
    assert set("".join(lines)) <= set("█▀▄ ") and lines[0] == "█" * len(lines[0])


@pytest.mark.parametrize(
    ("options", "words", "qr"),
    [
        (WebOptions(), "opens on this computer only", False),
        (WebOptions(lan=True), "one thread and no WebGPU", True),
        (WebOptions(lan=True, https=True), "not private", True),
        (WebOptions(adb=True), "over the cable", False),
    ],
)
def test_a_person_is_told_what_to_do(options, words, qr, capsys):
    """The address, a QR code only where another device could follow it, and what the browser will say."""
    url = "http://192.168.0.7:8080/abcdefghijklmnopqrstuv/"
    _announce(_address(url, options, "AB:CD", 1))
    said = capsys.readouterr().err
    assert f"Open {url}" in said and words in said and "Ctrl-C" in said
    assert ("█" in said) == qr == (qr_lines(url)[5] in said) and ("AB:CD" in said) == options.https


def test_a_browser_that_can_measure_nothing_says_so(served):
    client, sessions, _ = served
    client.arrive(asked=())
    report = sessions.report(sessions.all()[0])
    assert report.rows == () and "needs WebGPU" in report.notes[0]


def test_the_certificate_serves_the_page(tiny_bundle, tmp_path):
    context, fingerprint = own_certificate("127.0.0.1")
    bundle = open_bundle(tiny_bundle)
    plan = make_plan(bundle, Settings(), EVERYTHING, {})
    with web_server.serving(
        web_server.WebServer(("127.0.0.1", 0), plan, Sessions(bundle, plan, tmp_path, {}), "token", context)
    ) as running:
        port = running.server_address[1]
        seen = ssl.get_server_certificate(("127.0.0.1", port))
        trusting = ssl.create_default_context(cadata=seen)
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=trusting, timeout=30)
        connection.request("GET", "/token/plan.json")
        assert connection.getresponse().status == 200
        connection.close()
        assert hashlib.sha256(ssl.PEM_cert_to_DER_cert(seen)).hexdigest() == fingerprint.replace(":", "").lower()
        with socket.create_connection(("127.0.0.1", port), timeout=30) as plain:
            plain.sendall(b"GET /token/plan.json HTTP/1.1\r\n\r\n")
            assert b"200" not in plain.recv(1 << 12)
