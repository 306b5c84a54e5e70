// Upscales a photo tile by tile: where the tiles lie, how they are blended, and a bundle's dataflow, with the engine as a function of yours.
//
// The twin of f2i_tiles.hpp and of runtime_py's tiling: the same plan, and the same sums in float32 in the same order, so the stitched photo is the same
// to the last bit. (The weights come from Math.sin in double precision and are then rounded to float32. Where an engine's sine differs in its last bit,
// about one weight in 10^8 could differ; over all cross-fades up to 1,024 pixels none does.)
//
// No dependencies. Works on a page, in a worker, in React Native and in Node.js. Positions are in low-resolution pixels unless a name says otherwise.
//
//   const manifest = await (await fetch("bundle/manifest.json")).json();
//   const flow = dataflow(manifest, (component, inputs) => sessions[component].run(inputs));
//   const plan = photoPlan(manifest, height, width);
//   const photo = await upscaleImage(pixels, plan, flow);   // Float32Array RGB in, Float32Array RGB out: clip it to [0, 1]

/** Where the tiles of one photo lie, and their weights. As few tiles as the overlap allows, spread evenly; see runtime_py/f2i_runtime/tiling/tile_plan.py. */
export class TilePlan {
  /**
   * @param {{height: number, width: number, tile: number, overlap: number, scale?: number, margin?: number, align?: number, fade?: "hann" | "linear"}} o
   *   `margin`: pixels at a tile's inner edges that get no weight; `align`: tile positions are multiples of this.
   */
  constructor({ height, width, tile, overlap, scale = 2, margin = 0, align = 1, fade = "hann" }) {
    for (const [name, n] of Object.entries({ height, width, tile, overlap, scale, margin, align })) {
      if (!Number.isInteger(n) || n < (name === "overlap" || name === "margin" ? 0 : 1)) throw new RangeError(`${name} cannot be ${n}`);
    }
    if (2 * overlap >= Math.max(tile, 2)) throw new RangeError(`overlap ${overlap} does not fit tile ${tile}; expected less than half of it`);
    if (margin && 2 * margin >= overlap) throw new RangeError(`margin ${margin} does not fit overlap ${overlap}; expected 2 x margin < overlap`);
    if (tile % align || overlap % align) throw new RangeError(`tile ${tile} and overlap ${overlap} must be multiples of align ${align}`);
    if (fade !== "hann" && fade !== "linear") throw new RangeError(`unknown fade ${fade}; expected hann or linear`);
    Object.assign(this, { height, width, tile, overlap, scale, margin, align, fade });
    /** The top row of each row of tiles, and the left column of each column. */
    this.rows = origins(height, this);
    this.columns = origins(width, this);
    /** One Float32Array (tile * scale) for each row and column of tiles; a tile's weight is row weight times column weight. */
    this.rowWeights = axisWeights(this.rows, this);
    this.columnWeights = axisWeights(this.columns, this);
  }

  /** The number of tiles. */
  get count() {
    return this.rows.length * this.columns.length;
  }
}

function origins(length, { tile, overlap, align }) {
  const extent = Math.max(tile, Math.ceil(length / align) * align);
  const gaps = Math.ceil((extent - tile) / (tile - overlap));
  return Array.from({ length: gaps + 1 }, (_, i) => (i ? Math.floor((i * (extent - tile)) / (gaps * align)) * align : 0));
}

/** Returns n rising weights in double precision, sampled at pixel centres: all inside (0, 1), and ramp + reversed ramp = 1. */
export function ramp(n, fade = "hann") {
  return Float64Array.from({ length: n }, (_, i) => {
    const x = (i + 0.5) / Math.max(n, 1);
    if (fade === "linear") return x;
    const s = Math.sin((Math.PI / 2) * x);
    return s * s;
  });
}

function axisWeights(starts, plan) {
  const { tile, scale } = plan, side = tile * scale, rising = ramp((plan.overlap - 2 * plan.margin) * scale, plan.fade), n = rising.length;
  const fades = starts.slice(1).map((next, i) => Math.floor(((starts[i] + tile + next) * scale - n) / 2));
  // How far the next tile has taken over at an output pixel: 0, the ramp, then 1.
  const taken = (at, fade) => (at < fade ? 0 : at >= fade + n ? 1 : rising[at - fade]);
  return starts.map((start, i) =>
    Float32Array.from({ length: side }, (_, k) => {
      const at = start * scale + k;
      return (i > 0 ? taken(at, fades[i - 1]) : 1) - (i < fades.length ? taken(at, fades[i]) : 0);
    }));
}

/**
 * Returns the weights of a tile with neighbours on all sides, Float32Array (tile * scale, tile * scale), for apps that add weighted tiles up and divide by
 * the summed weights. `upscaleBlocks` needs no division.
 */
export function tileWindow(tile, overlap, scale = 2, fade = "hann") {
  const { overlap: shared } = new TilePlan({ height: tile, width: tile, tile, overlap, scale, fade }), rising = ramp(shared * scale, fade), side = tile * scale;
  const axis = Float64Array.from({ length: side }, (_, k) => rising[Math.min(k, side - 1 - k)] ?? 1);
  return Float32Array.from({ length: side * side }, (_, at) => axis[Math.floor(at / side)] * axis[at % side]);
}

/** Returns a bundle's plan for a photo: its tile size, overlap, scale and window. */
export function photoPlan(manifest, height, width, overlap = manifest.tile.overlap) {
  const { size, scale, window = "hann" } = manifest.tile;
  return new TilePlan({ height, width, tile: size, overlap, scale, fade: window });
}

/**
 * Returns a bundle's dataflow as a function from a tile to its upscaled tile, for `upscaleBlocks`.
 * @param manifest the bundle's `manifest.json`, parsed
 * @param {(component: string, inputs: Object<string, Float32Array>) => Float32Array | Promise<Float32Array>} run the engine: a component's inputs by name to
 *   its output, all float32 with the shapes of `manifest.components`
 * @param {{constants?: Object<string, Float32Array>, noise?: (position: [number, number]) => Float32Array}} given tensors that the bundle keeps, and what
 *   draws the noise of a tile where the model wants some (`manifest.noise`)
 */
export function dataflow(manifest, run, { constants = {}, noise } = {}) {
  if (manifest.noise && !noise) throw new TypeError("this model takes noise; give a function that draws it from the tile's position");
  return async (lr, position) => {
    const tensors = { lr, ...constants, ...(manifest.noise ? { noise: noise(position) } : {}) };
    for (const { component, inputs, result } of manifest.dataflow) {
      const bound = Object.fromEntries(Object.entries(inputs).map(([argument, tensor]) => [argument, tensors[tensor]]));
      tensors[result] = await run(component, bound);
    }
    return tensors.sr;
  };
}

/**
 * Upscales a photo tile by tile, and yields every finished piece once: by rows of tiles, from left to right in each.
 * @param {(y0: number, y1: number) => Float32Array | Promise<Float32Array>} readRows RGB in [0, 1], interleaved, of rows y0 to y1; every row is asked for
 *   once, from top to bottom
 * @param {TilePlan} plan
 * @param {(tile: Float32Array, position: [number, number]) => Float32Array | Promise<Float32Array>} upscaleTile planes (3, tile, tile) and (y, x) to planes
 *   (3, tile * scale, tile * scale)
 * @yields {{y: number, x: number, height: number, width: number, pixels: Float32Array}} in output pixels, RGB interleaved, not clipped
 */
export async function* upscaleBlocks(readRows, plan, upscaleTile) {
  const { tile, scale } = plan, side = tile * scale, wide = plan.width * scale, area = side * side;
  const finished = advances(plan.rows, plan.height * scale, scale), advance = advances(plan.columns, wide, scale);
  // What rows of tiles above leave to be completed, at the top of the present row of tiles.
  const left = Math.max(0, ...finished.slice(0, -1).map((n) => side - n)), carry = new Float32Array(3 * left * wide);
  const strip = stripReader(readRows, plan);
  let carried = 0;
  for (let r = 0; r < plan.rows.length; r++) {
    const cut = await strip(plan.rows[r]), n = finished[r], kept = r + 1 < plan.rows.length ? side - n : 0;
    // This tile and what its left neighbours leave for it to complete.
    const sum = new Float32Array(3 * area);
    for (let c = 0; c < plan.columns.length; c++) {
      const result = await upscaleTile(cut(plan.columns[c]), [plan.rows[r], plan.columns[c]]);
      if (result.length !== sum.length) throw new RangeError(`an upscaled tile has ${result.length} values; expected ${sum.length}`);
      addWeighted(sum, result, plan.rowWeights[r], plan.columnWeights[c]);
      const m = advance[c], x = plan.columns[c] * scale, pixels = new Float32Array(n * m * 3);
      for (let k = 0; k < 3; k++) {
        for (let i = 0; i < carried; i++) {
          for (let j = 0; j < m; j++) sum[k * area + i * side + j] += carry[(k * left + i) * wide + x + j];
        }
        for (let i = 0; i < n; i++) {
          for (let j = 0; j < m; j++) pixels[(i * m + j) * 3 + k] = sum[k * area + i * side + j];
        }
        for (let i = 0; i < kept; i++) {
          const from = k * area + (n + i) * side;
          carry.set(sum.subarray(from, from + m), (k * left + i) * wide + x);
        }
      }
      yield { y: plan.rows[r] * scale, x, height: n, width: m, pixels };
      for (let from = 0; from < 3 * area; from += side) {
        sum.copyWithin(from, from + m, from + side);
        sum.fill(0, from + side - m, from + side);
      }
    }
    carried = kept;
  }
}

/** Adds a tile times its weights, every step rounded to float32. */
function addWeighted(sum, tile, rowWeights, columnWeights) {
  const side = rowWeights.length;
  for (let k = 0, at = 0; k < 3; k++) {
    for (let i = 0; i < side; i++) {
      for (let j = 0; j < side; j++, at++) sum[at] += Math.fround(tile[at] * Math.fround(rowWeights[i] * columnWeights[j]));
    }
  }
}

function advances(starts, length, scale) {
  return starts.map((start, i) => (i + 1 < starts.length ? starts[i + 1] * scale : length) - start * scale);
}

/** Rows of tiles before upscaling. Where the photo ends before the tile it is filled by reflection, repeated as often as it takes. */
function stripReader(readRows, { height, width, tile }) {
  const tall = Math.min(tile, height), rows = new Float32Array(tall * width * 3);
  let top = 0, bottom = 0;
  return async (next) => {
    rows.copyWithin(0, (next - top) * width * 3, (bottom - top) * width * 3);
    top = next;
    const end = Math.min(top + tile, height);
    if (end > bottom) {
      const more = await readRows(bottom, end);
      if (more.length !== (end - bottom) * width * 3) throw new RangeError(`rows ${bottom} to ${end} came as ${more.length} values`);
      rows.set(more, (bottom - top) * width * 3);
      bottom = end;
    }
    return (from) => {
      const planes = new Float32Array(3 * tile * tile);
      for (let i = 0; i < tile; i++) {
        for (let j = 0; j < tile; j++) {
          const at = (reflect(i, end - top) * width + reflect(from + j, width)) * 3;
          for (let k = 0; k < 3; k++) planes[(k * tile + i) * tile + j] = rows[at + k];
        }
      }
      return planes;
    };
  };
}

function reflect(i, n) {
  if (n === 1) return 0;
  const at = i % (2 * n - 2);
  return at < n ? at : 2 * n - 2 - at;
}

/** `upscaleBlocks` of an image in memory: RGB interleaved, Float32Array (height * width * 3) to (height * width * 3 * scale^2), not clipped. */
export async function upscaleImage(pixels, plan, upscaleTile) {
  const { width, scale } = plan, wide = width * scale, result = new Float32Array(pixels.length * scale * scale);
  for await (const block of upscaleBlocks((y0, y1) => pixels.subarray(y0 * width * 3, y1 * width * 3), plan, upscaleTile)) {
    for (let i = 0; i < block.height; i++) {
      const row = block.pixels.subarray(i * block.width * 3, (i + 1) * block.width * 3);
      result.set(row, ((block.y + i) * wide + block.x) * 3);
    }
  }
  return result;
}

/** The colour fix `adain`: gain and offset that give the upscaled photo the mean and the spread of the photo's own colours, over the whole photo. */
export class ColorSums {
  constructor() {
    this.sums = { photo: new Float64Array(7), result: new Float64Array(7) }; // pixels, three sums, three sums of squares
  }

  /** Counts pixels, RGB interleaved: of the `photo`, or of the `result`, which is clipped. */
  add(which, pixels) {
    const sums = this.sums[which];
    sums[0] += pixels.length / 3;
    for (let i = 0; i < pixels.length; i++) {
      const value = Math.min(1, Math.max(0, pixels[i])) - 0.5, k = i % 3;
      sums[1 + k] += value;
      sums[4 + k] += value * value;
    }
  }

  /** Returns {gain, offset}, three numbers each: clipped result * gain + offset has the photo's colours. */
  affine() {
    const [photo, result] = [this.sums.photo, this.sums.result].map((s) => [1, 2, 3].map((k) => {
      const mean = s[k] / Math.max(s[0], 1);
      return { mean: mean + 0.5, std: Math.sqrt(Math.max(s[3 + k] / Math.max(s[0], 1) - mean * mean, 0)) };
    }));
    const gain = result.map(({ std }, k) => (std > 1e-5 ? photo[k].std / std : 1));
    return { gain, offset: gain.map((g, k) => photo[k].mean - g * result[k].mean) };
  }
}
