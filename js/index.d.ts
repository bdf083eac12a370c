/** A picture of any size, upright: `height` rows of `width` pixels. An `ImageData` is one. */
export interface Picture {
  /** 1 (grey), 3 (RGB) or 4 (RGBA, not premultiplied; it is laid on white) bytes a pixel. */
  readonly data: Uint8Array | Uint8ClampedArray;
  readonly width: number;
  readonly height: number;
}

export interface Answer {
  readonly name: string;
  /** softmax(logits / temperature), with the temperature that the packed file holds. */
  readonly probability: number;
}

export interface PredictOptions {
  /** At most so many answers; 5 unless given. */
  top?: number;
  /** Give no answer for a picture that is none of the classes, as the file's threshold says; false unless given. */
  unknown?: boolean;
}

/** When a picture is none of the classes: its score is below the threshold. */
export interface Unknown {
  readonly score: "max_logit" | "energy";
  readonly threshold: number;
  /** The share of known pictures that the threshold was set to call unknown. */
  readonly falseAlarmRate: number;
}

export interface Masks {
  /** 1 where token j (the last axis) is in a group of token i. */
  readonly data: Uint8Array;
  /** depth, groups, heads, tokens, tokens */
  readonly shape: [number, number, number, number, number];
  /** Tokens before those of the patches. */
  readonly prefixTokens: number;
  /** Rows and columns of patches. */
  readonly grid: { readonly rows: number; readonly columns: number };
}

/** The runtime refused what it was given; the message is one line for a user. */
export class ModelError extends Error {}

/**
 * A packed model, loaded and ready. It runs on the calling thread.
 *
 * Every method throws a `TypeError` or `RangeError` for what is no picture, and a `ModelError` where the model's numbers
 * overflow, for more than 64 million pixels, and after `free()`.
 */
export class Model {
  private constructor();
  /** The names of the K classes. */
  readonly classes: readonly string[];
  /** Pixels of the picture that the network reads; pictures of other sizes are cut and resized as in training. */
  readonly width: number;
  readonly height: number;
  /** Bytes of the packed file. */
  readonly size: number;
  /** null where the file holds no threshold. */
  readonly unknown: Unknown | null;
  /**
   * Name the most likely classes, best first; none where `unknown` is asked for and the picture is none of them.
   * @throws {ModelError} also for `unknown` where the file holds no threshold
   */
  predict(picture: Picture, options?: PredictOptions): Answer[];
  /** The K logits, equal to those of every other engine to the last bit. */
  logits(picture: Picture): Float32Array;
  /** The binary attention masks of every block, group and head. */
  masks(picture: Picture): Masks;
  /** Forget the model and its memory. */
  free(): void;
}

export interface LoadOptions {
  /** gsb_vit.wasm: where it lies, its bytes, or the compiled module. It lies in this package unless given. */
  wasm?: string | URL | BufferSource | WebAssembly.Module;
}

/**
 * Load a packed model.
 * @param source its bytes, a `Blob`, a URL or, in Node, a path
 * @throws {ModelError} for what cannot be read and for a file that is no packed model
 */
export function load(
  source: Uint8Array | ArrayBuffer | Blob | URL | string,
  options?: LoadOptions,
): Promise<Model>;
