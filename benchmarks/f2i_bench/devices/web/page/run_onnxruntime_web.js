// ONNX Runtime for browsers: https://onnxruntime.ai/docs/api/js/

/** A model of one Identity: the first session of a page also loads the engine's WebAssembly, which is no part of a model's load time. */
const NOTHING = "CAg6NwoQCgFhEgFiIghJZGVudGl0eRIBZ1oPCgFhEgoKCAgBEgQKAggBYg8KAWISCgoICAESBAoCCAFCBAoAEBE=";

export async function start({ runtime, backend, threads }) {
  const build = backend === "webgpu" ? "ort.webgpu.min.mjs" : "ort.wasm.min.mjs";
  const ort = await import(`${runtime}dist/${build}`);
  Object.assign(ort.env.wasm, { numThreads: threads, proxy: false, wasmPaths: `${runtime}dist/` });
  ort.env.logLevel = "error";
  const nothing = Uint8Array.from(atob(NOTHING), (sign) => sign.charCodeAt(0));
  await (await ort.InferenceSession.create(nothing, { executionProviders: [backend] })).release();
  return {
    async open(bytes, { inputs }) {
      // What is called WebGPU is on the GPU as a whole: an op that would go to the processor is an error.
      const extra = backend === "webgpu" ? { session: { disable_cpu_ep_fallback: "1" } } : {};
      const session = await ort.InferenceSession.create(bytes, { executionProviders: [backend], graphOptimizationLevel: "all", extra });
      return {
        async run(given) {
          const feeds = Object.fromEntries(inputs.map(({ name, shape }) => [name, new ort.Tensor("float32", given[name], shape)]));
          const result = (await session.run(feeds))[session.outputNames[0]];
          const data = Float32Array.from(await result.getData());
          result.dispose();
          return data;
        },
      };
    },
  };
}
