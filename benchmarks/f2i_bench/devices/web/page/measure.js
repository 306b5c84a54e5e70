// The measurement: every variant on every backend, judged by the server, timed by the same protocol as everywhere else.
import { openEngine, tensorReader } from "./engine.js";

const post = async (path, body, type = "application/json") => {
  const answer = await fetch(path, { method: "POST", headers: { "Content-Type": type }, body });
  const data = await answer.json();
  if (!answer.ok) throw new Error(data.error || `the computer said ${answer.status}`);
  return data;
};

/** What this page will measure: [job, backend, threads], WebAssembly first. An engine has one thread where the page or the browser gives it no more. */
export function lanes(plan, { facts, cores }) {
  const threads = ({ threads_need: needs }) => {
    const several = facts.isolated && facts.threads && needs.every((name) => facts[name]);
    const found = plan.threads.filter((n) => n === 1 || (several && n <= cores));
    return found.length ? found : [1];
  };
  const backends = plan.backends.filter((backend) => backend !== "webgpu" || facts.webgpu);
  return backends.flatMap((backend) => plan.jobs.flatMap((job) => (backend === "wasm" ? threads(job) : [1]).map((n) => [job.job, backend, n])));
}

/**
 * Measures. `show(event)` is told of every step: {step} before a lane, {lane, rows} after it, {lane, error} where the computer took no result.
 * Returns the session, for `end`. `stopped()` true ends it after the present step.
 */
export async function measure(plan, browser, show, stopped) {
  const asked = lanes(plan, browser);
  const { session } = await post("browser", JSON.stringify({ arrival: browser.arrival, asked }));
  const read = tensorReader();
  for (const [k, lane] of asked.entries()) {
    if (stopped()) break;
    show({ step: k, of: asked.length, lane, name: laneName(plan, lane) });
    const result = await measureLane(plan, lane, session, read, stopped);
    if (stopped()) break;
    try {
      show({ lane, rows: (await post(`result/${session}`, JSON.stringify(result))).rows });
    } catch (e) {
      show({ lane, error: e.message });
    }
  }
  if (!stopped()) await post(`end/${session}`, "");
  return session;
}

export function laneName(plan, [job, backend, threads]) {
  const where = backend === "webgpu" ? "WebGPU" : `WebAssembly, ${threads} thread${threads === 1 ? "" : "s"}`;
  return `${plan.jobs[job].label}, ${where}`;
}

async function measureLane(plan, [job, backend, threads], session, read, stopped) {
  const { components, engine: name } = plan.jobs[job];
  const items = components.map((c) => ({ component: c.name, load_ns: null, first_ns: null, rounds: [], error: null }));
  const result = { job, backend, threads, engine: name, start_ns: null, items };
  let opened;
  try {
    opened = await openEngine(plan.jobs[job], backend, threads);
    result.start_ns = opened.start_ns;
    for (const [k, component] of components.entries()) {
      const inputs = await tensors(component, read);
      items[k].load_ns = (await opened.engine.call("open", { component })).ns;
      const first = await opened.engine.call("run", { name: component.name, inputs });
      items[k].first_ns = first.ns;
      await post(`output/${session}/${component.name}`, first.output, "application/octet-stream");
    }
    await time(plan, components, items, opened.engine, read, stopped);
  } catch (e) {
    for (const item of items) item.error = item.error || String(e.message || e).slice(0, 400) || "it failed";
  }
  opened?.engine.close();
  return result;
}

/** Runs to warm up, then rounds in which the components take turns. A component that has taken its seconds stops early. */
async function time(plan, components, items, engine, read, stopped) {
  const { warmup, runs, rounds, seconds } = plan.settings, left = components.map(() => seconds * 1000);
  for (const component of components) {
    if (warmup) await engine.call("time", { name: component.name, inputs: await tensors(component, read), runs: warmup, ms: seconds * 500 });
  }
  for (let round = 0; round < rounds && !stopped(); round++) {
    for (const [k, component] of components.entries()) {
      if (left[k] <= 0) continue;
      const began = performance.now(), most = Math.floor(((round + 1) * runs) / rounds) - Math.floor((round * runs) / rounds);
      if (most) items[k].rounds.push((await engine.call("time", { name: component.name, inputs: await tensors(component, read), runs: most, ms: left[k] })).times);
      left[k] -= performance.now() - began;
    }
  }
}

const tensors = async (component, read) =>
  Object.fromEntries(await Promise.all(component.inputs.map(async ({ name, url }) => [name, await read(url)])));
