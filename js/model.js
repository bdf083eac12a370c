// What users see of the engine: pictures of any size in, answers out.
import { Model as Engine, ModelError } from "./dist/engine.js";

export { ModelError };

/** A packed model, loaded and ready. load() makes it. */
export class Model {
  #engine;

  constructor(engine) {
    this.#engine = engine;
    this.classes = Object.freeze([...engine.classNames]);
    this.width = engine.width;
    this.height = engine.height;
    this.size = engine.size;
    const unknown = engine.unknown;
    this.unknown = unknown && Object.freeze({
      score: unknown.score,
      threshold: unknown.threshold,
      falseAlarmRate: unknown.false_alarm_rate,
    });
  }

  predict(picture, { top = 5, unknown = false } = {}) {
    return this.#engine.predict(this.#prepare(picture), { top, unknown });
  }

  logits(picture) {
    return this.#engine.logits(this.#prepare(picture));
  }

  masks(picture) {
    const { depth, groups, heads, tokens, prefixTokens, grid } = this.#engine;
    const data = this.#engine.masks(this.#prepare(picture));
    return { data, shape: [depth, groups, heads, tokens, tokens], prefixTokens, grid };
  }

  free() {
    this.#engine.free();
  }

  #prepare(picture) {
    const data = picture?.data;
    if (!(data instanceof Uint8Array || data instanceof Uint8ClampedArray)) {
      const given = data === undefined ? kindOf(picture) : `one with data in ${kindOf(data)}`;
      throw new TypeError(
        `a picture is { data, width, height } with data in a Uint8Array or Uint8ClampedArray, not ${given}`,
      );
    }
    return this.#engine.prepare(data, picture.width, picture.height);
  }
}

/**
 * The function load() for a platform.
 * @param {(place: string | URL) => Promise<Uint8Array>} read what is at a path or URL
 * @param {URL} module where gsb_vit.wasm lies
 */
export function loader(read, module) {
  let compiled = null; // a promise of the module; one serves all models

  async function fetched(place) {
    try {
      return await read(place);
    } catch (error) {
      throw new ModelError(`${place} cannot be read (${oneLine(error)})`);
    }
  }

  const compile = async (place) => WebAssembly.compile(await fetched(place));

  async function runtime(wasm) {
    if (wasm instanceof WebAssembly.Module) return wasm;
    if (wasm !== undefined) return isPlace(wasm) ? compile(wasm) : WebAssembly.compile(wasm);
    compiled ??= compile(module);
    try {
      return await compiled;
    } catch (error) {
      compiled = null; // the next call tries again
      throw error;
    }
  }

  return async function load(source, { wasm } = {}) {
    const bytes = isPlace(source) ? await fetched(source) : await bytesOf(source);
    return new Model(await Engine.load(await runtime(wasm), bytes));
  };
}

const isPlace = (source) => typeof source === "string" || source instanceof URL;

/** A copy of bytes: what becomes of the caller's own changes nothing. */
async function bytesOf(source) {
  if (typeof Blob !== "undefined" && source instanceof Blob) return new Uint8Array(await source.arrayBuffer());
  if (source instanceof Uint8Array) return new Uint8Array(source);
  if (source instanceof ArrayBuffer) return new Uint8Array(source.slice(0));
  throw new TypeError(
    `a model is loaded from a path, a URL, a Blob or the bytes of a packed file in a Uint8Array, not ${kindOf(source)}`,
  );
}

/** Whatever a URL gives. */
export async function readUrl(place) {
  const response = await fetch(place);
  if (!response.ok) throw new Error(`HTTP status ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

const kindOf = (value) => value?.constructor?.name ?? String(value);

const oneLine = (error) => String(error?.cause?.message || error?.message || error).split(/\s+/).join(" ");
