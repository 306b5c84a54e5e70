"""``f2i bench --device web`` as a person meets it: the address, the page in a real browser, the table, the file, the report."""

import json
import os
import platform
import re
import subprocess
import sys

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import firefox, launch_options, webgpu_options
from f2i_bench.bench import BenchOptions, run_bench
from f2i_bench.core.protocol import read_bench
from f2i_bench.devices.web import web_runtimes
from f2i_bench.devices.web.web_options import WebOptions
from f2i_runtime.bundle.store import open_bundle
from f2i_runtime.errors import UsageError
from f2i_runtime.pipeline import open_pipeline, upscale_image
from f2i_runtime.targets import Selection, Variant
from PIL import Image
from playwright.sync_api import sync_playwright
from published_schema import assert_fits
from web_page import command

MEASURED, SECONDS = "html[data-measured]", 240
FEW = ("--warmup", 1, "--runs", 6, "--seconds", 1, "--threads", "2,1")
WIDTHS = {"phone": (390, 844), "desk": (1440, 900)}


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(**launch_options(playwright))
        yield opened
        opened.close()


class Visit:
    """The page open in a browser, with everything that it asked for."""

    def __init__(self, browser, url, **options):
        self.context = browser.new_context(ignore_https_errors=True, accept_downloads=True, **options)
        self.page, self.asked, self.errors = self.context.new_page(), [], []
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)

    def wait(self):
        self.page.wait_for_selector(MEASURED, timeout=SECONDS * 1000)
        assert self.errors == []
        return self.page


@pytest.fixture(scope="module")
def measured(chromium, tiny_bundle, tmp_path_factory):
    """(the finished page, its visit, the running command, where the JSON goes): from the command's first line to the finished table."""
    path = tmp_path_factory.mktemp("web") / "bench.json"
    with command(tiny_bundle, "--json", path, "--precision", "fp32", *FEW) as started:
        visit = Visit(chromium, started.url, viewport={"width": 390, "height": 844}, has_touch=True)
        yield visit.wait(), visit, started, path
        visit.context.close()


def test_the_page_ends_in_a_table_where_every_row_is_correct(measured):
    page, visit, started, _ = measured
    assert page.locator("#state").inner_text().startswith("Done: every row is correct"), page.locator("#rows").inner_text()
    rows = [row.split("\n") for row in page.locator("#rows tr").all_inner_texts()]
    assert len(rows) == 2 * 2 * (2 if os.cpu_count() > 1 else 1)  # engines, components, threads
    assert all("✓ yes" in " ".join(row) for row in rows)
    here = started.url.split("/")[2]
    assert here.startswith("127.0.0.1:") and len(started.url.split("/")[3]) == 22
    # No third party is asked for anything, by the page, its workers or the engines.
    assert visit.asked and all(re.match(rf"(http://{here}/|data:|blob:http://{here}/)", url) for url in visit.asked)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_accessible_and_inside_the_screen(measured, width, scheme):
    page = measured[0]
    page.set_viewport_size(dict(zip(("width", "height"), WIDTHS[width], strict=True)))
    page.emulate_media(color_scheme=scheme)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    outside = """() => [...document.querySelectorAll('main *, header *')].filter(e => {
        if (e.closest('.scroll, .compare') || !e.checkVisibility()) return false;
        const box = e.getBoundingClientRect();
        return box.width && (box.right > innerWidth + 1 || box.left < -1);
    }).map(e => e.tagName)"""
    assert page.evaluate(outside) == []


def test_a_photo_is_upscaled_as_python_does_it(measured, tiny_bundle, chelsea, tmp_path):
    page, crop = measured[0], chelsea[40:130, 100:200]
    Image.fromarray(crop).save(tmp_path / "cat.png")
    page.locator("#engine").select_option(label="ONNX Runtime fp32, WebAssembly, 1 thread")
    page.locator("#file").set_input_files(tmp_path / "cat.png")
    page.wait_for_selector("#save:not(:disabled)", timeout=SECONDS * 1000)
    assert "200 × 180 pixels" in page.locator("#photo-state").inner_text()
    with page.expect_download() as download:
        page.locator("#save").click()
    assert download.value.suggested_filename == "cat-f2i.png"
    download.value.save_as(tmp_path / "got.png")
    with open_pipeline(open_bundle(tiny_bundle), Variant("onnx", "fp32")) as pipeline:
        expected = upscale_image(pipeline, crop)
    got = np.asarray(Image.open(tmp_path / "got.png").convert("RGB"))
    apart = np.abs(got.astype(int) - expected)
    # Two builds of the engine differ in the last bits, so a value may fall on the other side of a half.
    assert got.shape == expected.shape and apart.max() <= 1 and (apart > 0).mean() < 0.01
    slider = page.locator("#slide")
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert slider.input_value() == "60" and "60%" in page.locator("#compare").get_attribute("style")
    assert Axe().run(page).violations_count == 0


def test_what_is_no_photo_is_refused_in_a_sentence(measured, tmp_path):
    page, path = measured[0], tmp_path / "text.png"
    path.write_text("no photo")
    page.locator("#file").set_input_files(path)
    # Not wait_for_function, which evaluates text: the page's policy refuses that, unless the condition holds at once.
    page.locator("#photo-state", has_text="This photo could not").wait_for(timeout=60_000)


def test_results_come_back_to_the_table_the_file_and_the_report(measured, chromium, tiny_bundle, tmp_path):
    """Runs last: Ctrl-C ends the command, which shows what came."""
    from f2i_runtime.validation.results import Environment, Report

    from f2i.report.images import ReportImages
    from f2i.report.page import render

    *_, started, path = measured
    started.interrupt()
    code, output = started.end()
    assert code == 0, started.said
    assert "on browser on Linux (Chrome" in output and "÷ native" in output
    bench = read_bench(path)
    assert_fits("bench", json.loads(path.read_text()))
    assert bench.device.kind == "web" and bench.device.browser.isolated and bench.device.browser.simd
    for row in bench.rows:
        assert row.status == "ok" and row.rel_l2 <= (1e-5 if row.precision == "fp32" else 1e-2), row
        assert row.low_ns <= row.median_ns <= row.high_ns and row.load_ns > 0 and row.first_ns > 0 and row.native_ns > 0
    assert {row.engine for row in bench.rows} == {"onnxruntime-web 1.30.0 (wasm)", "@litertjs/core 2.5.3 (wasm)"}
    environment = Environment(machine="here", python="3", bundle="tiny", reference="torch", simulated_sqnr_db={})
    nothing = Report(passed=False, components=(), layers=(), photos=(), gates=(), environment=environment)
    text = render(open_bundle(tiny_bundle), nothing, ReportImages(), command=["f2i"], bench=bench)
    assert "In a browser" in text and bench.device.name in text and "onnxruntime-web 1.30.0 (wasm)" in text
    (tmp_path / "report.html").write_text(text)
    page = chromium.new_page(viewport={"width": 390, "height": 844})
    page.goto((tmp_path / "report.html").as_uri())
    page.get_by_role("tab", name="Speed").click()
    assert page.get_by_text("In a browser").is_visible() and Axe().run(page).violations_count == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()


@pytest.mark.slow
def test_int8_computes_in_a_browser_what_it_does_here(chromium, cache, tmp_path):
    from repository import F2I

    quantize = ["quantize", "tiny", "--recipe", "w8a8", "--out", tmp_path / "int8"]
    export = ["export", tmp_path / "int8", "--target", "tflite,onnx", "--precision", "w8a8", "--out", tmp_path / "bundle"]
    for line in (quantize, export):
        subprocess.run([F2I, *map(str, line)], check=True, timeout=1200)
    with command(tmp_path / "bundle", "--json", tmp_path / "bench.json", "--browsers", 1, *FEW) as started:
        Visit(chromium, started.url).wait()
        assert started.end()[0] == 0
    rows = read_bench(tmp_path / "bench.json").rows
    assert rows and {row.status for row in rows} == {"ok"}, [r.reason for r in rows]
    for row in rows:
        # ONNX Runtime's float sums differ in WebAssembly in the sixth digit, which turns a few roundings; random weights carry them on.
        assert row.rel_l2 < (5e-3 if row.target == "tflite" or row.component == "feature_encoder" else 0.2)


@pytest.mark.slow
def test_several_phones_at_once_and_one_that_leaves(chromium, tiny_bundle, tmp_path):
    only = ("--target", "tflite", "--precision", "fp32")
    with command(tiny_bundle, "--json", tmp_path / "bench.json", "--minutes", 2, *only, *FEW) as started:
        leaving = Visit(chromium, started.url)
        leaving.page.wait_for_selector("#rows tr", state="attached", timeout=SECONDS * 1000)
        staying = Visit(chromium, started.url)
        leaving.context.close()
        staying.wait()
        started.interrupt()
        code, _ = started.end()
    reports = [read_bench(path) for path in sorted(tmp_path.glob("bench-browser-*.json"))]
    assert code == 0 and len(reports) == 2
    assert {r.status for r in reports[1].rows} == {"ok"} and any(r.status == "ok" for r in reports[0].rows)


@pytest.mark.slow
def test_a_certificate_of_its_own_gives_threads(chromium, tiny_bundle, tmp_path):
    path = tmp_path / "bench.json"
    only = ("--target", "tflite", "--precision", "fp32")
    with command(tiny_bundle, "--https", "--browsers", 1, "--json", path, *only, *FEW) as started:
        assert started.url.startswith("https://")
        Visit(chromium, started.url).wait()
        assert started.end()[0] == 0
    assert read_bench(path).device.browser.isolated


@pytest.mark.slow
@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="Debian's Firefox is fetched for Linux on x86-64")
def test_firefox_measures_the_same(tiny_bundle, tmp_path):
    """No driver is needed: the page starts by itself."""
    profile = tmp_path / "profile"
    profile.mkdir()
    with command(tiny_bundle, "--browsers", 1, "--json", tmp_path / "bench.json", "--precision", "fp32", *FEW) as started:
        line, environment = firefox(profile, started.url)
        browser = subprocess.Popen(line, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert started.end(600)[0] == 0, started.said
        finally:
            browser.terminate()
            browser.wait(timeout=60)
    bench = read_bench(tmp_path / "bench.json")
    assert "Firefox" in bench.device.name and {row.status for row in bench.rows} == {"ok"}
    assert {row.target for row in bench.rows} == {"tflite", "onnx"} and all(row.rel_l2 < 1e-5 for row in bench.rows)


@pytest.mark.slow
@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="Debian's Chromium is fetched for Linux on x86-64")
def test_webgpu_computes_the_same_or_says_what_it_cannot(tiny_bundle, tmp_path):
    """Both engines wholly on a GPU that is computed in software, without half precision: fp32 passes the gate, fp16 is refused, and nothing is mixed."""
    path = tmp_path / "bench.json"
    with (
        command(tiny_bundle, "--browsers", 1, "--json", path, "--accelerator", "gpu", "--runs", 1, "--warmup", 0) as started,
        sync_playwright() as p,
    ):
        browser = p.chromium.launch(**webgpu_options())
        Visit(browser, started.url).wait()
        assert started.end()[0] == 0
        browser.close()
    rows = read_bench(path).rows
    assert {(row.precision, row.status) for row in rows} == {("fp32", "ok"), ("fp16", "failed")} and {row.accelerator for row in rows} == {
        "gpu"
    }
    assert all(row.sqnr_db > 90 for row in rows if row.status == "ok")
    assert {row.reason.split(";")[0] for row in rows if row.status == "failed" and row.target == "tflite"} == {
        "some of its ops are not on the GPU"
    }


def test_nobody_came(tiny_bundle):
    options = BenchOptions("web", Selection("onnx", "fp32"), threads="1", runs=3, warmup=0, seconds=0.1, web=WebOptions(minutes=0.01))
    with pytest.raises(UsageError, match="nobody opened the page"):
        run_bench(open_bundle(tiny_bundle), options)


@pytest.mark.parametrize(
    ("only", "web", "words"),
    [
        (Selection("coreml", "fp32"), WebOptions(), "nothing for a browser"),
        (Selection(accelerator="hexagon"), WebOptions(), "got accelerator 'hexagon'"),
        (Selection(), WebOptions(lan=True, adb=True), "choose one"),
        (Selection(), WebOptions(adb=True), "needs the adb command"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_fetched(tiny_bundle, monkeypatch, only, web, words):
    monkeypatch.setattr(web_runtimes, "_install", lambda *_: pytest.fail("fetched something"))
    for name in ("PATH", "ANDROID_HOME", "ANDROID_SDK_ROOT"):
        monkeypatch.setenv(name, "")
    with pytest.raises(UsageError, match=words):
        run_bench(open_bundle(tiny_bundle), BenchOptions("web", only, web=web))


def test_a_runtime_with_another_hash_is_refused(tmp_path, monkeypatch):
    """npm itself, from a registry of ours that gives a package of the right name and version with other content."""
    import base64
    import hashlib
    import http.server
    import io
    import tarfile
    import threading

    package = web_runtimes.PACKAGES["@litertjs/wasm-utils"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in (
            ("package/package.json", json.dumps({"name": package.name, "version": package.version})),
            ("package/dist/index.js", "evil()"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    content = buffer.getvalue()

    class Registry(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            here = f"http://127.0.0.1:{self.server.server_address[1]}"
            digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
            dist = {"tarball": f"{here}/package.tgz", "integrity": f"sha512-{digest}", "shasum": hashlib.sha1(content).hexdigest()}
            versions = {package.version: {"name": package.name, "version": package.version, "dist": dist}}
            about = {"name": package.name, "dist-tags": {"latest": package.version}, "versions": versions}
            body = content if self.path.endswith(".tgz") else json.dumps(about).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    registry = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=registry.serve_forever, daemon=True).start()
    try:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("NPM_CONFIG_CACHE", str(tmp_path / "npm"))
        monkeypatch.setenv("F2I_NPM_REGISTRY", f"http://127.0.0.1:{registry.server_address[1]}/")
        with pytest.raises(UsageError, match=r"SHA-512 is .* expected 4fJiw6"):
            web_runtimes.runtime_folders([package.name])
        assert not [p for p in (tmp_path / "cache").rglob("*") if p.name == package.folder]
    finally:
        registry.shutdown()
        registry.server_close()


def test_the_page_needs_no_python_package_beyond_the_base():
    """segno and cryptography are asked for only where a QR code or a certificate is made."""
    check = "import sys; sys.modules['segno'] = sys.modules['cryptography'] = None; import f2i_bench.devices.web.web_bench"
    assert subprocess.run([sys.executable, "-c", check], timeout=60).returncode == 0
