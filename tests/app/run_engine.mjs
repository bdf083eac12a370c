// What tests/app/test_engine.py asks of engine.js: node run_engine.mjs JOB.json → JSON.
import { readFileSync, writeFileSync } from "node:fs";

const job = JSON.parse(readFileSync(process.argv[2], "utf8"));
const { Model, ModelError } = await import(`file://${job.app}/engine.js`);
const read = (path) => new Uint8Array(readFileSync(path));

/** The text of a refusal, or null. */
async function refusal(action) {
  try {
    await action();
  } catch (error) {
    return `${error instanceof ModelError ? "ModelError" : error.constructor.name}: ${error.message}`;
  }
  return null;
}

const tasks = {
  async logits({ model, pixels, out }) {
    const loaded = await Model.load(read(`${job.app}/gsb_vit.wasm`), read(model));
    writeFileSync(out, loaded.logits(read(pixels)));
    const { classNames, height, width, classes, grid, prefixTokens } = loaded;
    const top = loaded.predict(read(pixels).subarray(0, height * width * 3), 3);
    return { classNames, height, width, classes, grid, prefixTokens, top };
  },
  async masks({ model, pixels, out }) {
    const loaded = await Model.load(read(`${job.app}/gsb_vit.wasm`), read(model));
    writeFileSync(out, loaded.masks(read(pixels)));
  },
  async prepare({ model, rgba, width, height, out }) {
    const loaded = await Model.load(read(`${job.app}/gsb_vit.wasm`), read(model));
    writeFileSync(out, loaded.prepare(new Uint8ClampedArray(read(rgba)), width, height));
  },
  async refuse({ model }) {
    return refusal(() => Model.load(read(`${job.app}/gsb_vit.wasm`), read(model)));
  },
  // A model whose numbers overflow on some pictures refuses these and goes on with the others.
  async recover({ model, good, bad }) {
    const loaded = await Model.load(read(`${job.app}/gsb_vit.wasm`), read(model));
    const before = [...loaded.logits(read(good))];
    const text = await refusal(() => loaded.logits(read(bad)));
    return { text, before, after: [...loaded.logits(read(good))], short: await refusal(() => loaded.logits(new Uint8Array(7))) };
  },
};

console.log(JSON.stringify(await tasks[job.task](job)));
