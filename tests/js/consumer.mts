// Checked with tsc by tests/js/test_package.py, never run: what a strict TypeScript project may do with the package.
import { load, Model, ModelError, type Answer, type Masks, type Picture, type Unknown } from "gsb-vit";

const picture: Picture = { data: new Uint8ClampedArray(12), width: 2, height: 2 };
const frame: Picture = new ImageData(2, 2);
const model: Model = await load("model.safetensors", { wasm: new URL("file:///gsb_vit.wasm") });
const others: Promise<Model>[] = [load(new Uint8Array(3)), load(new Blob([])), load(new URL("file:///m"))];
const answers: Answer[] = model.predict(picture, { top: 3, unknown: true });
const names: readonly string[] = model.classes;
const best: [string, number] | undefined = answers[0] && [answers[0].name, answers[0].probability];
const logits: Float32Array = model.logits(frame);
const { data, shape, grid, prefixTokens }: Masks = model.masks(picture);
const sizes: number[] = [model.width, model.height, model.size, ...shape, grid.rows, grid.columns, prefixTokens, data.length];
const unknown: Unknown | null = model.unknown;
const rate: number = unknown?.falseAlarmRate ?? 0;
if (new ModelError("no").message) model.free();

// @ts-expect-error: a picture has a size
model.predict({ data: new Uint8Array(3) });
// @ts-expect-error: no plain array
model.logits({ data: [1, 2, 3], width: 1, height: 1 });
// @ts-expect-error: options have names
model.predict(picture, 3);
// @ts-expect-error: load makes models
new Model();
// @ts-expect-error: names are not assigned
model.classes[0] = "other";
// @ts-expect-error: a promise is awaited
load("model.safetensors").predict(picture);

export { others, names, best, logits, sizes, rate };
