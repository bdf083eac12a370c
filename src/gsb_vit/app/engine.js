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
    /** Bytes of the packed file. */
    this.size = bytes.length;
    this.#start();
    const { architecture, class_names: names, preprocessing, decision } = readMetadata(bytes);
    this.architecture = architecture;
    this.classNames = names;
    this.preprocessing = preprocessing;
    /** What the file says of "none of these": { score, threshold, false_alarm_rate }, or null. */
    this.unknown = decision?.unknown ?? null;
    const info = this.#call("malloc", 4 * INFO_WORDS);
    this.#call("gsb_vit_get_info", info, this.#model);
    const words = new Int32Array(this.#runtime.memory.buffer, info, INFO_WORDS);
    [this.height, this.width, this.classes, this.tokens, , this.depth, this.heads] = words;
    this.groups = words[INFO_WORDS - 1];
    this.#call("free", info);
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
    if (![1, 3, 4].includes(format) || !isCount(width) || !isCount(height)) {
      throw new RangeError(`${pixels.length} bytes are no grey, RGB or RGBA picture of ${width} × ${height} pixels`);
    }
    this.#start();
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
    this.#start();
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
   * The probabilities of one picture, softmax(logits / temperature), with the temperature that the file holds.
   * @param {Float32Array} logits (K)
   * @returns {Float64Array} (K), of sum 1
   */
  probabilities(logits) {
    const [from, to] = this.#putLogits(logits, 8 * this.classes);
    this.#call("gsb_vit_probabilities", this.#model, from, 1, to);
    const found = new Float64Array(this.#runtime.memory.buffer, to, this.classes).slice();
    this.#call("free", from);
    this.#call("free", to);
    return found;
  }

  /**
   * Is a picture none of the classes, as the file's threshold says?
   * @param {Float32Array} logits (K)
   * @returns {boolean}
   * @throws {ModelError} as requireUnknown
   */
  isUnknown(logits) {
    this.requireUnknown();
    const [from] = this.#putLogits(logits, 0);
    const found = this.#call("gsb_vit_is_unknown", this.#model, from);
    this.#call("free", from);
    return found === 1;
  }

  /** Throw a ModelError where the file holds no threshold: where `unknown` is null. */
  requireUnknown() {
    if (this.unknown) return;
    const way = "export its run again, trained with some validation pictures (data.validation_fraction)";
    throw new ModelError(`the model has no threshold for unknown pictures; ${way}`);
  }

  /**
   * Name the most likely classes of one picture, best first; equal probabilities in the order of the classes.
   * @param {Float32Array} logits (K)
   * @param {number} top at most so many answers
   * @returns {{name: string, probability: number}[]}
   */
  answers(logits, top = 5) {
    if (!isCount(top)) throw new RangeError(`top ${top} must be a whole number of at least 1`);
    const probabilities = this.probabilities(logits);
    const order = Array.from(probabilities.keys()).sort((a, b) => probabilities[b] - probabilities[a] || a - b);
    return order.slice(0, top).map((k) => ({ name: this.classNames[k], probability: probabilities[k] }));
  }

  /**
   * Name what is in one picture: answers(), and with `unknown` none where it is none of the classes.
   * @param {Uint8Array | Uint8ClampedArray} pixels (H, W, 3), as prepare() makes them
   */
  predict(pixels, { top = 5, unknown = false } = {}) {
    if (unknown) this.requireUnknown();
    const logits = this.logits(pixels);
    return unknown && this.isUnknown(logits) ? [] : this.answers(logits, top);
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
    this.#start();
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

  /** Forget the model and its memory; nothing can be asked of it afterwards. */
  free() {
    this.#runtime = this.#bytes = null;
  }

  // Logits of one picture and room for a result, which may be 0 bytes: their places.
  #putLogits(logits, room) {
    if (logits.length !== this.classes) {
      throw new RangeError(`${logits.length} numbers are no logits of ${this.classes} classes`);
    }
    this.#start();
    const places = [this.#call("malloc", 4 * logits.length), ...(room ? [this.#call("malloc", room)] : [])];
    new Float32Array(this.#runtime.memory.buffer, places[0]).set(logits);
    return places;
  }

  // Make an instance with the model, unless there is one.
  #start() {
    if (this.#runtime) return;
    if (!this.#bytes) throw new ModelError("the model was freed; load it again");
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

const isCount = (value) => Number.isInteger(value) && value > 0;

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
