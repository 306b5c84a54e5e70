// Runs one engine, away from the page, so that the page stays responsive and all its memory is given back when the worker ends.
// A classic worker: LiteRT.js loads its WebAssembly with importScripts, which module workers lack.
"use strict";
let engine;
const models = {};

const clock = async (work) => {
  const began = performance.now();
  const result = await work();
  // Nanoseconds; a clock that stood still says 1.
  return [Math.max(1, Math.round((performance.now() - began) * 1e6)), result];
};

const tasks = {
  async start({ script, runtime, backend, threads }) {
    const module = await import(new URL(script, self.location.href).href);
    const [ns, started] = await clock(() => module.start({ runtime: new URL(runtime, self.location.href).href, backend, threads }));
    engine = started;
    return { ns };
  },
  async open({ component }) {
    const answer = await fetch(new URL(component.url, self.location.href));
    if (!answer.ok) throw new Error(`${component.url} cannot be loaded: ${answer.status}`);
    const bytes = new Uint8Array(await answer.arrayBuffer());
    const [ns, model] = await clock(() => engine.open(bytes, component));
    models[component.name] = model;
    return { ns };
  },
  async run({ name, inputs }) {
    const [ns, output] = await clock(() => models[name].run(inputs));
    return { ns, output };
  },
  /** Repeats a run until there are so many, or so many milliseconds have gone. */
  async time({ name, inputs, runs, ms }) {
    const times = [], until = performance.now() + ms;
    while (times.length < runs && (times.length === 0 || performance.now() < until)) times.push((await clock(() => models[name].run(inputs)))[0]);
    return { times };
  },
};

self.onmessage = async ({ data: { id, task, ...given } }) => {
  try {
    const answer = await tasks[task](given);
    self.postMessage({ id, ...answer }, answer.output ? [answer.output.buffer] : []);
  } catch (e) {
    self.postMessage({ id, error: String((e && e.message) || e).slice(0, 400) });
  }
};
