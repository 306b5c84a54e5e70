"""The report as a reader meets it: opened in headless Chromium, on a phone's and a desk's width, in both colour schemes."""

import json
import re
import shlex

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import launch_options
from f2i_bench.core.protocol import BenchReport, Device, Layer, Limit, OpTime, Prediction, Row, Settings, with_figures
from f2i_runtime.bundle.store import open_bundle
from f2i_runtime.validation.validate import validate
from f2i_runtime.validation.validate_options import ValidateOptions
from playwright.sync_api import sync_playwright

from f2i.report.charts import Variant, pareto_front, scatter
from f2i.report.images import ReportImages, heat_map
from f2i.report.page import write_report

COMMAND = ["f2i", "validate", "my bundle", "--html", "report.html"]
ROW = {"target": "onnx", "precision": "fp32", "component": "unet", "threads": 2, "status": "ok", "rounds_ns": ((9, 11), (10, 10))}
BENCH = BenchReport(
    created="2026-01-01T00:00:00+00:00",
    device=Device(kind="host", name="desk", os="Linux", machine="x86_64", cpu="a processor", cores=2, memory_bytes=1 << 30),
    versions={},
    bundle="tiny",
    manifest_sha256="0" * 64,
    settings=Settings(),
    limits=(Limit(threads=2, fp32_flops=5e11, int8_ops=2e12, bandwidth=1e10),),
    layers=tuple(
        Layer(component="unet", layer=f"denoiser.unet.{part}", flops=f) for part, f in [("conv_in", 10**9), ("mid_block", 3 * 10**9)]
    ),
    rows=(
        with_figures(
            Row(**ROW, flops=7_000_000_000, limit_share=0.4321, bound="arithmetic", ops=(OpTime(op="FusedConv", calls=7, ns=9_000_000),))
        ),
    ),
    predictions=(
        Prediction(
            target="onnx",
            precision="fp32",
            threads=2,
            megapixels=12,
            tiles=300,
            seconds=70,
            peak_rss_bytes=10**9,
            core_seconds=140,
            error=-0.09,
        ),
    ),
)
WIDTHS = {"phone": (390, 844), "desk": (1440, 900)}


@pytest.fixture(scope="module")
def made(tiny_bundle, tmp_path_factory):
    """(path, report) of a page made from a real validation."""
    bundle, images = open_bundle(tiny_bundle), ReportImages()
    report = validate(bundle, ValidateOptions(tiles=2, photos=2), show=images.collect)
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, bundle, report, images, command=COMMAND, bench=BENCH)
    return path, report


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(**launch_options(playwright))
        yield chromium
        chromium.close()


@pytest.fixture(params=[(width, scheme) for width in WIDTHS for scheme in ("light", "dark")], ids="-".join)
def page(request, browser, made):
    """The open page; fails afterwards if it said anything on the console or asked for anything but itself."""
    width, scheme = request.param
    context = browser.new_context(
        viewport=dict(zip(("width", "height"), WIDTHS[width], strict=True)), color_scheme=scheme, has_touch=width == "phone"
    )
    opened = context.new_page()
    said, asked = [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(made[0].as_uri())
    yield opened
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [made[0].as_uri()]


def parts(page):
    """Opens every part in turn."""
    for tab in page.get_by_role("tab").all():
        tab.click()
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        yield tab.inner_text()


def test_it_opens_at_its_title_and_verdict(page):
    page.wait_for_load_state("load")
    assert page.evaluate("[window.scrollY, location.hash]") == [0, ""]
    assert page.get_by_role("heading", level=1).is_visible() and page.locator(".verdict").is_visible()


def test_every_part_is_accessible_and_inside_the_screen(page):
    for part in parts(page):
        found = Axe().run(page)
        assert found.violations_count == 0, f"{part}: {found.generate_report()}"
        clipped = page.evaluate(
            """() => [document.documentElement.scrollWidth > innerWidth && 'page',
                ...[...document.querySelectorAll('main *, header *')].filter(e => {
                    if (e.closest('.scroll, .tabs, svg, .compare') || !e.checkVisibility()) return false;
                    const box = e.getBoundingClientRect();
                    return box.width && (box.right > innerWidth + 1 || box.left < -1) && getComputedStyle(e).position !== 'absolute';
                }).map(e => e.tagName + '.' + e.className)].filter(Boolean)"""
        )
        assert clipped == [], f"{part}: {clipped}"


def test_slider_and_tabs_work_with_the_keyboard_alone(page):
    page.get_by_role("tab", name="Pictures").focus()
    slider = page.get_by_role("slider")
    slider.focus()
    before = page.locator("#before").evaluate("e => getComputedStyle(e).clipPath")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert slider.input_value() == "60"
    assert page.locator("#before").evaluate("e => getComputedStyle(e).clipPath") != before
    page.get_by_role("tab", name="Pictures").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", name="Errors").get_attribute("aria-selected") == "true"
    assert page.locator("#errors").is_visible() and not page.locator("#pictures").is_visible()
    page.keyboard.press("End")
    assert page.locator("#reproduce").is_visible() and page.url.endswith("#reproduce")


def test_pictures_load_and_follow_the_choice(page):
    natural = "e => e.decode().then(() => e.naturalWidth)"
    assert page.locator("#before").evaluate(natural) > 50
    first = page.locator("#after").get_attribute("src")
    page.locator("#right").select_option("onnx/fp16")
    assert page.locator("#after").get_attribute("src") != first
    assert re.search(r"ONNX Runtime fp16: \d+\.\d dB", page.locator("#caption").inner_text())
    page.locator("#photo").select_option(index=1)
    assert page.locator("#after").evaluate(natural) > 50
    page.get_by_role("tab", name="Errors").click()
    assert page.locator("#maps figure").count() == 8
    assert page.locator("#maps svg rect").count() >= 8


def test_page_holds_what_the_report_measured(made):
    path, report = made
    text = path.read_text()
    assert path.stat().st_size < 5e6
    assert shlex.join(COMMAND).replace("'", "&#39;") in text
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", text)
    assert "Against the machine" in text and "43.21%" in text and "onnx/fp32 unet" in text
    rows = [re.sub(r"<[^>]+>", " ", row.replace("<wbr>", "")).split() for row in re.findall(r"<tr>.*?</tr>", text, re.S)]
    assert ["denoiser.unet.mid_block", "3.00", "75.00%", "6.00"] in rows and ["FusedConv", "7", "9.00", "100.00%"] in rows
    assert any(row[:1] == ["12"] and row[-1] == "-9%" for row in rows)
    assert text.count("<tr>") >= len(report.components) + len(report.photos)
    assert json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1]).keys() == {p.image for p in report.photos}
    assert "images" not in report.as_json() and set(report.as_json()) == {
        "schema",
        "passed",
        "components",
        "layers",
        "photos",
        "gates",
        "environment",
        "bad_ops",
    }


def test_pareto_front_keeps_what_nothing_beats():
    fast, slow = Variant("onnx", "fp16", 1.0, 0.5, 60.0), Variant("onnx", "fp32", 2.0, 1.0, 90.0)
    beaten = Variant("tflite", "fp16", 1.5, 0.6, 59.0)
    assert pareto_front([fast, slow, beaten]) == {"onnx/fp16", "onnx/fp32"}
    chart = scatter([fast, slow, beaten, Variant("coreml", "fp16", 1.0, None, 60.0)])
    assert [p["name"] for p in chart["points"]] == ["onnx/fp16", "onnx/fp32", "tflite/fp16"]
    assert chart["points"][0]["x"] < chart["points"][2]["x"] < chart["points"][1]["x"]


def test_names_in_the_chart_cover_no_mark_and_no_other_name():
    from f2i.report.charts import CHARACTER, HEIGHT, LINE, REACH, WIDTH

    close = [Variant(target, "w8a8", 8.0 + k, 0.43 + 0.03 * k, 56.0) for k, target in enumerate(("executorch", "tflite", "onnx", "coreml"))]
    far = [Variant("tflite", "fp16", 13.0, 0.9, 134.0), Variant("executorch", "fp16", 19.0, 0.98, 74.0)]
    boxes = []
    for point in scatter(close + far)["points"]:
        x, y, r, long = point["x"], point["y"], point["r"] * REACH, CHARACTER * len(point["name"])
        left = point["label_x"] - {"start": 0, "middle": long / 2, "end": long}[point["anchor"]]
        middle = point["label_y"] - 5
        assert left >= 0 and left + long <= WIDTH and 0 < middle < HEIGHT
        boxes += [("mark", x - r, y - r, x + r, y + r), ("name", left, middle - LINE / 2, left + long, middle + LINE / 2)]
    for k, (kind, *one) in enumerate(boxes):
        for other_kind, *other in boxes[k + 1 :]:
            apart = one[0] >= other[2] - 0.1 or other[0] >= one[2] - 0.1 or one[1] >= other[3] - 0.1 or other[1] >= one[3] - 0.1
            assert apart or kind == other_kind == "mark", (one, other)


def test_heat_map_keeps_the_largest_error_of_what_a_pixel_covers():
    import numpy as np

    error = np.zeros((1100, 900), np.float32)
    error[700, 333] = 0.1
    picture = heat_map(error)
    assert picture.shape == (367, 300, 3) and tuple(picture[233, 111]) == (252, 255, 164) and tuple(picture[0, 0]) == (0, 0, 4)
