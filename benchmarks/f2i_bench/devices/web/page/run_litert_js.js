// LiteRT for browsers: https://ai.google.dev/edge/litert/web
export async function start({ runtime, backend, threads }) {
  const litert = await import(`${runtime}dist/index.js`);
  const wasm = `${runtime}wasm/`;
  // Its script is loaded into this worker, which is not beside its files.
  self.Module = { locateFile: (name) => wasm + name, mainScriptUrlOrBlob: `${wasm}litert_wasm_threaded_internal.js` };
  const jspi = backend === "webgpu" && typeof WebAssembly.Suspending === "function";
  await litert.loadLiteRt(wasm, threads > 1 ? { threads: true } : jspi ? { jspi: true } : {});
  return {
    async open(bytes, { inputs, precision }) {
      // A float32 file is computed in float32; without saying so a GPU that has half precision takes it.
      const gpuOptions = precision === "fp32" ? { gpuOptions: { precision } } : {};
      const model = await litert.loadAndCompile(bytes, { accelerator: backend, cpuOptions: { numThreads: threads }, ...gpuOptions });
      if (backend === "webgpu" && model.isFullyAccelerated === false) throw new Error("some of its ops are not on the GPU");
      // The converter names inputs args_0, args_1, … in calling order.
      const details = [...model.getInputDetails()].sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
      return {
        async run(given) {
          const tensors = Object.fromEntries(details.map((detail, k) => [detail.name, new litert.Tensor(given[inputs[k].name], inputs[k].shape)]));
          const result = Object.values(await model.run(tensors))[0];
          const here = result.accelerator === "wasm" ? result : await result.moveTo("wasm");
          const data = Float32Array.from(here.toTypedArray());
          for (const tensor of [...Object.values(tensors), here]) if (!tensor.deleted) tensor.delete();
          return data;
        },
      };
    },
  };
}
