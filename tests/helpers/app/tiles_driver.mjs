// Runs the jobs of a file through examples/app/tiles.js; tiles_driver.cpp is its twin. node tiles_driver.mjs TILES MANIFEST JOBS, one job a line:
//   photo HEIGHT WIDTH TILE OVERLAP SCALE MARGIN ALIGN FADE IN OUT | ramp N OUT | window TILE OVERLAP SCALE FADE OUT | colors PHOTO RESULT OUT
import fs from "node:fs";
import { pathToFileURL } from "node:url";

const [, , tiles, manifestPath, jobs] = process.argv;
const { ColorSums, TilePlan, dataflow, ramp, tileWindow, upscaleImage } = await import(pathToFileURL(tiles));
const manifest = JSON.parse(fs.readFileSync(manifestPath, "utf8"));
const floats = (path) => new Float32Array(Uint8Array.from(fs.readFileSync(path)).buffer);
const write = (path, values) => fs.writeFileSync(path, new Uint8Array(values.buffer));

/** An engine that any language computes to the last bit: a context of one number, and nearest pixels times it. */
const engine = (scale) => (component, { lr, context }) => {
  if (component === "feature_encoder") return Float32Array.of(Math.fround(lr[0] + lr[lr.length - 1]) + 0.5);
  const tile = Math.round(Math.sqrt(lr.length / 3)), side = tile * scale, result = new Float32Array(3 * side * side);
  for (let at = 0; at < result.length; at++) {
    const k = Math.floor(at / (side * side)), i = Math.floor((at % (side * side)) / side), j = at % side;
    result[at] = lr[(k * tile + Math.floor(i / scale)) * tile + Math.floor(j / scale)] * context[0];
  }
  return result;
};

for (const line of fs.readFileSync(jobs, "utf8").trim().split("\n")) {
  const [kind, ...words] = line.split(" ");
  if (kind === "photo") {
    const [height, width, tile, overlap, scale, margin, align] = words.slice(0, 7).map(Number);
    const plan = new TilePlan({ height, width, tile, overlap, scale, margin, align, fade: words[7] });
    write(words[9], await upscaleImage(floats(words[8]), plan, dataflow(manifest, engine(scale))));
  } else if (kind === "ramp") {
    write(words[1], Float32Array.from(ramp(Number(words[0]))));
  } else if (kind === "window") {
    write(words[4], tileWindow(...words.slice(0, 3).map(Number), words[3]));
  } else {
    const sums = new ColorSums();
    sums.add("photo", floats(words[0]));
    sums.add("result", floats(words[1]));
    const { gain, offset } = sums.affine();
    write(words[2], Float32Array.from([...gain, ...offset]));
  }
}
