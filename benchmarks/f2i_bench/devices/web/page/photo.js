// A photo of the person's own, upscaled tile by tile on this device; it is sent nowhere.
import { ColorSums, dataflow, photoPlan, upscaleBlocks } from "./tiles.js";
import { openEngine, readNpy } from "./engine.js";

/** Canvases of more pixels stay empty on iPhones. */
const MOST_PIXELS = 1 << 24;

/** Returns the photo as a canvas, cut to its middle where the result would be too large, and whether it was cut. */
export async function openPhoto(file, scale) {
  const bitmap = await createImageBitmap(file), most = MOST_PIXELS / (scale * scale);
  const part = Math.min(1, Math.sqrt(most / (bitmap.width * bitmap.height)));
  const width = Math.max(1, Math.floor(bitmap.width * part)), height = Math.max(1, Math.floor(bitmap.height * part));
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, -Math.floor((bitmap.width - width) / 2), -Math.floor((bitmap.height - height) / 2));
  bitmap.close();
  return { canvas, cut: part < 1 };
}

/** Upscales `source` into the canvas `target`, piece by piece. `progress(done, of)`; `stopped()` true ends it, and then false is returned. */
export async function upscalePhoto(plan, [job, backend, threads], source, target, progress, stopped) {
  const { components } = plan.jobs[job], constants = {};
  for (const [name, url] of Object.entries(plan.constants)) constants[name] = await readNpy(url);
  const { engine } = await openEngine(plan.jobs[job], backend, threads);
  try {
    for (const component of components) await engine.call("open", { component });
    const run = async (name, inputs) => (await engine.call("run", { name, inputs })).output;
    // Noise is drawn by numpy's generator elsewhere, so a model that takes some gives another picture here.
    const noise = () => normalNoise(components);
    const flow = dataflow(plan, run, { constants, noise });
    const tiles = photoPlan(plan, source.height, source.width), from = source.getContext("2d"), to = target.getContext("2d");
    Object.assign(target, { width: source.width * tiles.scale, height: source.height * tiles.scale });
    const colors = plan.color_fix === "adain" ? new ColorSums() : null;
    const readRows = (y0, y1) => {
      const rows = toFloats(from.getImageData(0, y0, source.width, y1 - y0).data);
      colors?.add("photo", rows);
      return rows;
    };
    let done = 0;
    for await (const block of upscaleBlocks(readRows, tiles, flow)) {
      if (stopped()) return false;
      colors?.add("result", block.pixels);
      to.putImageData(new ImageData(toBytes(block.pixels), block.width, block.height), block.x, block.y);
      progress(++done, tiles.count);
    }
    if (colors) recolor(to, target, colors.affine());
    return true;
  } finally {
    engine.close();
  }
}

/** Interleaved RGBA bytes to interleaved RGB in [0, 1]. */
function toFloats(bytes) {
  const floats = new Float32Array((bytes.length / 4) * 3), unit = Math.fround(1 / 255);
  for (let i = 0, at = 0; i < bytes.length; i += 4) {
    for (let k = 0; k < 3; k++) floats[at++] = Math.min(1, bytes[i + k] * unit);
  }
  return floats;
}

/** Interleaved RGB to RGBA bytes, clipped and rounded half up. */
function toBytes(floats) {
  const bytes = new Uint8ClampedArray((floats.length / 3) * 4);
  for (let i = 0, at = 0; i < floats.length; at += 4) {
    for (let k = 0; k < 3; k++, i++) bytes[at + k] = Math.floor(Math.fround(Math.fround(Math.min(1, Math.max(0, floats[i])) * 255) + 0.5));
    bytes[at + 3] = 255;
  }
  return bytes;
}

/** Applies the colour fix to a finished picture, in strips. */
function recolor(context, { width, height }, { gain, offset }) {
  for (let y = 0; y < height; y += 64) {
    const image = context.getImageData(0, y, width, Math.min(64, height - y));
    for (let i = 0; i < image.data.length; i++) {
      if (i % 4 < 3) image.data[i] = Math.floor(image.data[i] * gain[i % 4] + offset[i % 4] * 255 + 0.5);
    }
    context.putImageData(image, 0, y);
  }
}

function normalNoise(components) {
  const { shape } = components.flatMap((c) => c.inputs).find(({ tensor }) => tensor === "noise");
  return Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () =>
    Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random()));
}
