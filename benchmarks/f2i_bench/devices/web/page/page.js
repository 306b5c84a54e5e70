// The page: starts the measurement by itself, shows what comes back, and then upscales photos.
import { aboutBrowser } from "./about.js";
import { laneName, lanes, measure } from "./measure.js";
import { openPhoto, upscalePhoto } from "./photo.js";

const $ = (id) => document.getElementById(id);
const node = (tag, text, attributes = {}) => Object.assign(document.createElement(tag), { textContent: text ?? "", ...attributes });
const ms = (ns) => (ns === null ? "–" : (ns / 1e6).toFixed(ns < 1e7 ? 2 : 1));
const told = (value) => (value ? "yes" : "no");
let stopped = false;

$("stop").addEventListener("click", () => {
  stopped = true;
  $("stop").disabled = true;
  $("state").textContent = "Stopping after this step…";
});

function showFacts(browser) {
  const { facts, cores, arrival } = browser;
  $("who").textContent = [arrival.model, facts.user_agent].filter(Boolean).join(", ");
  const lines = {
    Processors: cores,
    Memory: arrival.memory_gib === null ? "not told" : `${arrival.memory_gib} GB or more`,
    "Secure page": told(facts.secure),
    Threads: told(facts.isolated && facts.threads),
    "Relaxed SIMD": told(facts.relaxed_simd),
    WebGPU: facts.webgpu ? facts.gpu : "no",
    "Half precision on the GPU": told(facts.shader_f16),
  };
  $("facts").replaceChildren(...Object.entries(lines).flatMap(([name, value]) => [node("dt", name), node("dd", value)]));
}

function showRows(plan, lane, rows) {
  $("results").hidden = false;
  for (const row of rows) {
    const line = document.createElement("tr"), heading = node("th", plan.jobs[lane[0]].label, { scope: "row" });
    heading.append(node("small", `${row.component} · ${laneName(plan, lane).split(", ").slice(1).join(", ")}`));
    line.append(heading);
    if (row.median_ns === null && row.status === "failed") {
      line.append(node("td", row.reason, { colSpan: 6, className: "why no" }));
    } else {
      const interval = row.low_ns === null ? "–" : `${ms(row.low_ns)} … ${ms(row.high_ns)}`;
      const native = row.native_ns && row.median_ns ? (row.median_ns / row.native_ns).toFixed(2) : "–";
      line.append(node("td", ms(row.median_ns)));
      line.append(node("td", row.status === "ok" ? "✓ yes" : `✗ ${row.reason}`, { className: row.status === "ok" ? "yes" : "why no" }));
      line.append(...[interval, ms(row.load_ns), native, row.sqnr_db === null ? "–" : row.sqnr_db.toFixed(1)].map((text) => node("td", text)));
    }
    $("rows").append(line);
  }
}

/** Keeps the screen on where the browser lets a page do so, and again when the page is looked at again. */
async function stayAwake() {
  const ask = () => navigator.wakeLock?.request("screen").catch(() => {});
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && ask());
  await ask();
}

async function start() {
  const [plan, browser] = await Promise.all([fetch("plan.json").then((answer) => answer.json()), aboutBrowser()]);
  $("bundle").textContent = `· ${plan.bundle}`;
  showFacts(browser);
  stayAwake();
  const fastest = new Map();
  let failed = 0;
  const show = ({ step, of, name, lane, rows, error }) => {
    if (name) {
      $("state").textContent = `Measuring ${name} (${step + 1} of ${of})`;
      $("progress").value = step / of;
    } else if (error) {
      $("state").textContent = `${laneName(plan, lane)}: ${error}`;
      failed++;
    } else {
      showRows(plan, lane, rows);
      failed += rows.filter((row) => row.status !== "ok").length;
      if (rows.every((row) => row.status === "ok")) fastest.set(lane.join(), rows.reduce((sum, row) => sum + (row.median_ns ?? 0), 0));
    }
  };
  const nothing = lanes(plan, browser).length === 0;
  let ending = "Done: every row is correct. The results are on the computer.";
  try {
    await measure(plan, browser, show, () => stopped);
    if (failed) ending = `Done. ${failed} row${failed === 1 ? " is" : "s are"} not correct; the table says why. The results are on the computer.`;
    if (nothing) ending = "Nothing was measured: what was asked for needs WebGPU, which this page does not have.";
    if (stopped) ending = "Stopped. What was measured is on the computer.";
  } catch (e) {
    ending = `The measurement ended: ${e.message}. Is the command on the computer still running?`;
  }
  $("progress").value = 1;
  $("stop").hidden = true;
  $("state").textContent = ending;
  document.documentElement.dataset.measured = "yes";
  const order = lanes(plan, browser).sort((a, b) => (fastest.get(a.join()) ?? Infinity) - (fastest.get(b.join()) ?? Infinity));
  if (order.length) preparePhotos(plan, order);
}

function preparePhotos(plan, order) {
  $("engine").replaceChildren(...order.map((lane) => node("option", laneName(plan, lane), { value: lane.join() })));
  $("engine").disabled = $("file").disabled = false;
  $("photo-state").textContent = "Choose a photo. The fastest correct engine is set.";
  let turn = 0, name = "photo";
  $("file").addEventListener("change", async () => {
    const mine = ++turn, [file] = $("file").files;
    if (!file) return;
    name = file.name.replace(/\.[^.]*$/, "");
    try {
      await upscale(plan, file, $("engine").value.split(",").map((part, k) => (k === 1 ? part : Number(part))), () => mine !== turn);
    } catch (e) {
      if (mine === turn) $("photo-state").textContent = `This photo could not be upscaled: ${e.message || e}`;
      $("photo-progress").hidden = true;
    }
  });
  $("engine").addEventListener("change", () => $("file").dispatchEvent(new Event("change")));
  $("slide").addEventListener("input", () => $("compare").style.setProperty("--at", `${$("slide").value}%`));
  $("save").addEventListener("click", () => $("after").toBlob((blob) => {
    const url = URL.createObjectURL(blob);
    node("a", "", { href: url, download: `${name}-f2i.png` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }));
}

async function upscale(plan, file, lane, over) {
  const { canvas, cut } = await openPhoto(file, plan.tile.scale);
  Object.assign($("before"), { width: canvas.width, height: canvas.height });
  $("before").getContext("2d").drawImage(canvas, 0, 0);
  $("shown").hidden = $("photo-progress").hidden = false;
  $("save").disabled = true;
  $("photo-state").textContent = "Loading the engine…";
  const began = performance.now();
  const progress = (done, of) => {
    $("photo-progress").value = done / of;
    $("photo-state").textContent = `Tile ${done} of ${of}`;
  };
  if (!(await upscalePhoto(plan, lane, canvas, $("after"), progress, over))) return;
  $("photo-progress").hidden = true;
  $("save").disabled = false;
  const size = `${$("after").width} × ${$("after").height} pixels in ${((performance.now() - began) / 1000).toFixed(1)} s`;
  $("photo-state").textContent = `${size}${cut ? ", its middle: the whole is too large for a page" : ""}. Move the slider over it.`;
}

start().catch((e) => { $("state").textContent = `The page could not start: ${e.message}`; });
