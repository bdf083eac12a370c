// The runtime in WebAssembly: packed models, for browsers and Node. C API: native/include/gsb_vit.h.

const INFO_WORDS = 12; // of gsb_vit_info
const STEP = 64; // pictures handed over at a time

/** The runtime refused what it was given; the message is one line for a user. */
export class ModelError extends Error {}

/**
 * A packed model, loaded and ready.
 *
 * It runs on the calling thread. Its logits equal those of the native engine to the last bit.
 */
export class Model {
  #module;
  #bytes;
  #runtime = null; // exports of the instance that runs now
  #model = 0;

  /**
   * Load a packed file.
   * @param {WebAssembly.Module | BufferSource} wasm gsb_vit.wasm
   * @param {Uint8Array} bytes the packed file's
   * @throws {ModelError} for a file that is no packed model
   */
  static async load(wasm, bytes) {
    return new Model(wasm instanceof WebAssembly.Module ? wasm : await WebAssembly.compile(wasm), bytes);
  }

  /** As load, for a compiled module, at once: Chromium's main thread refuses to compile large ones itself. */
  constructor(module, bytes) {
    this.#module = module;
    this.#bytes = bytes;
    this.#start();
    const { architecture, class_names: names, preprocessing, decision } = readMetadata(bytes);
    this.architecture = architecture;
    this.classNames = names;
    this.preprocessing = preprocessing;
    this.temperature = decision?.temperature ?? 1;
    const info = this.#call("malloc", 4 * INFO_WORDS);
    this.#call("gsb_vit_get_info", info, this.#model);
    const words = new Int32Array(this.#runtime.memory.buffer, info, INFO_WORDS);
    [this.height, this.width, this.classes, this.tokens, , this.depth, this.heads] = words;
    this.groups = words[INFO_WORDS - 1];
    this.#call("free", info);
  }

  /** Bytes of the packed file. */
  get size() {
    return this.#bytes.length;
  }

  /** Rows and columns of patches. */
  get grid() {
    const [height, width] = this.architecture.patch_size;
    return { rows: this.height / height, columns: this.width / width };
  }

  /** Tokens before those of the patches. */
  get prefixTokens() {
    return this.tokens - this.grid.rows * this.grid.columns;
  }

  /**
   * Crop and resize a picture as in training.
   * @param {Uint8Array | Uint8ClampedArray} pixels (height, width, channels): 1 grey, 3 RGB or 4 RGBA, which is laid on
   *   white; upright
   * @returns {Uint8Array} (H, W, 3), to the bit what Python's Preprocessing makes
   * @throws {ModelError} for more than 64 million pixels
   */
  prepare(pixels, width, height) {
    const format = pixels.length / (width * height);
    if (![1, 3, 4].includes(format)) {
      throw new RangeError(`${pixels.length} bytes are no picture of ${width} × ${height} pixels`);
    }
    if (!this.#runtime) this.#start();
    const size = this.height * this.width * 3;
    const from = this.#call("malloc", pixels.length);
    const to = this.#call("malloc", size);
    new Uint8Array(this.#runtime.memory.buffer, from).set(pixels);
    this.#call("gsb_vit_prepare_image", this.#model, from, width, height, 0, format, 1, to);
    const found = new Uint8Array(this.#runtime.memory.buffer, to, size).slice();
    this.#call("free", from);
    this.#call("free", to);
    return found;
  }

  /**
   * Classify pictures.
   * @param {Uint8Array | Uint8ClampedArray} pixels (B, H, W, 3), as prepare() makes them
   * @returns {Float32Array} (B, K)
   * @throws {RangeError} for pixels that are no whole number of pictures
   * @throws {ModelError} where the model's numbers overflow
   */
  logits(pixels) {
    const picture = this.height * this.width * 3;
    const count = pixels.length / picture;
    if (!Number.isInteger(count)) {
      throw new RangeError(`${pixels.length} bytes are no pictures of ${this.height} × ${this.width} × 3 bytes`);
    }
    if (!this.#runtime) this.#start();
    const found = new Float32Array(count * this.classes);
    const room = Math.min(count, STEP);
    const from = this.#call("malloc", room * picture);
    const to = this.#call("malloc", 4 * room * this.classes);
    for (let first = 0; first < count; first += STEP) {
      const part = Math.min(count - first, STEP);
      const memory = this.#runtime.memory.buffer;
      new Uint8Array(memory, from).set(pixels.subarray(first * picture, (first + part) * picture));
      this.#call("gsb_vit_predict", this.#model, from, part, to);
      found.set(new Float32Array(this.#runtime.memory.buffer, to, part * this.classes), first * this.classes);
    }
    this.#call("free", from);
    this.#call("free", to);
    return found;
  }

  /**
   * Name the most likely classes of one picture, best first; equal probabilities in the order of the classes.
   * @param {Uint8Array | Uint8ClampedArray} pixels (H, W, 3), as prepare() makes them
   * @returns {{name: string, probability: number}[]}
   */
  predict(pixels, top = 5) {
    const probabilities = softmax(this.logits(pixels), this.temperature);
    const order = Array.from(probabilities.keys()).sort((a, b) => probabilities[b] - probabilities[a] || a - b);
    return order.slice(0, top).map((k) => ({ name: this.classNames[k], probability: probabilities[k] }));
  }

  /**
   * Attention masks of one picture: 1 where token j is in a group of token i.
   * @param {Uint8Array} pixels (H, W, 3), as prepare() makes them
   * @returns {Uint8Array} (depth, groups, heads, N, N)
   */
  masks(pixels) {
    if (pixels.length !== this.height * this.width * 3) {
      throw new RangeError(`${pixels.length} bytes are no picture of ${this.height} × ${this.width} × 3 bytes`);
    }
    if (!this.#runtime) this.#start();
    const size = this.depth * this.groups * this.heads * this.tokens ** 2;
    const from = this.#call("malloc", pixels.length);
    const to = this.#call("malloc", size);
    new Uint8Array(this.#runtime.memory.buffer, from).set(pixels);
    this.#call("gsb_vit_masks", this.#model, from, to);
    const found = new Uint8Array(this.#runtime.memory.buffer, to, size).slice();
    this.#call("free", from);
    this.#call("free", to);
    return found;
  }

  #start() {
    this.#runtime = new WebAssembly.Instance(this.#module, {}).exports;
    this.#call("_initialize");
    const place = this.#call("malloc", this.#bytes.length);
    new Uint8Array(this.#runtime.memory.buffer).set(this.#bytes, place);
    this.#model = this.#call("gsb_vit_load_bytes", place, this.#bytes.length, 1, 0);
    this.#call("free", place);
  }

  // A failed call ends its instance; the next one starts another.
  #call(name, ...values) {
    const runtime = this.#runtime;
    try {
      const value = runtime[name](...values);
      if (name === "malloc" && value === 0) throw new ModelError("there is not enough memory for this");
      return value;
    } catch (error) {
      this.#runtime = null;
      if (!(error instanceof WebAssembly.RuntimeError)) throw error;
      throw new ModelError(textAt(runtime, runtime.gsb_vit_error()) || error.message);
    }
  }
}

function textAt(runtime, place) {
  const bytes = new Uint8Array(runtime.memory.buffer, place);
  return new TextDecoder().decode(bytes.slice(0, bytes.indexOf(0)));
}

/** What the metadata of a packed file says, which the runtime has checked. */
function readMetadata(bytes) {
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  return JSON.parse(header.__metadata__.model);
}

/** Logits of one picture → probabilities, softmax(logits / temperature), in float64. */
export function softmax(logits, temperature = 1) {
  const largest = logits.reduce((a, b) => Math.max(a, b), -Infinity) / temperature;
  const found = Float64Array.from(logits, (logit) => Math.exp(logit / temperature - largest));
  const sum = found.reduce((a, b) => a + b, 0);
  return found.map((value) => value / sum);
}
