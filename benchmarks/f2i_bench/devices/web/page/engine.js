// A variant in a worker of its own, and the golden tensors it is judged on.

/** Longer than any step of a model that fits a phone; after it the worker is taken for dead. */
const STEP_MS = 10 * 60 * 1000;

/** An engine with a variant's components. `call(task, given)` resolves to the worker's answer or rejects with its words. */
export class Engine {
  constructor() {
    this.worker = new Worker("engine_worker.js");
    this.waiting = new Map();
    this.next = 0;
    this.worker.onmessage = ({ data: { id, error, ...answer } }) => {
      const waiting = this.waiting.get(id);
      if (!waiting) return;
      this.waiting.delete(id);
      clearTimeout(waiting.timer);
      error === undefined ? waiting.resolve(answer) : waiting.reject(new Error(error));
    };
    this.worker.onerror = (e) => this.fail(e.message || "the engine's worker ended");
  }

  call(task, given) {
    return new Promise((resolve, reject) => {
      const id = this.next++, timer = setTimeout(() => this.fail("no answer in ten minutes"), STEP_MS);
      this.waiting.set(id, { resolve, reject, timer });
      this.worker.postMessage({ id, task, ...given });
    });
  }

  fail(why) {
    for (const { reject, timer } of this.waiting.values()) {
      clearTimeout(timer);
      reject(new Error(why));
    }
    this.waiting.clear();
    this.worker.terminate();
  }

  close() {
    this.fail("stopped");
  }
}

/** Starts a job's engine and opens its components. Returns it with the times that this took, in ns. */
export async function openEngine(job, backend, threads) {
  const engine = new Engine();
  try {
    const { ns } = await engine.call("start", { script: job.script, runtime: job.runtime, backend, threads });
    return { engine, start_ns: ns };
  } catch (e) {
    engine.close();
    throw e;
  }
}

/** Returns the values of a .npy file: float32, little-endian, as a bundle's are. */
export async function readNpy(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url} cannot be loaded: ${answer.status}`);
  const bytes = await answer.arrayBuffer(), view = new DataView(bytes), major = view.getUint8(6);
  const start = major === 1 ? 10 + view.getUint16(8, true) : 12 + view.getUint32(8, true);
  if (!new TextDecoder("latin1").decode(bytes.slice(10, start)).includes("'<f4'")) throw new Error(`${url} is not float32`);
  return new Float32Array(bytes.slice(start));
}

/** Returns a function that reads each tensor once. */
export function tensorReader() {
  const read = new Map();
  return (url) => {
    if (!read.has(url)) read.set(url, readNpy(url));
    return read.get(url);
  };
}
