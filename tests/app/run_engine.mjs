// What tests/app/test_engine.py asks of engine.js: node run_engine.mjs JOB.json → JSON.
import { readFileSync, writeFileSync } from "node:fs";

const job = JSON.parse(readFileSync(process.argv[2], "utf8"));
// Node 18 takes a .js file for CommonJS where no package.json says otherwise.
const engine = readFileSync(`${job.app}/engine.js`).toString("base64");
const { Model, ModelError } = await import(`data:text/javascript;base64,${engine}`);
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
    const top = loaded.predict(read(pixels).subarray(0, height * width * 3), { top: 3 });
    return { classNames, height, width, classes, grid, prefixTokens, top };
  },
  async masks({ model, pixels, out }) {
    const loaded = await Model.load(read(`${job.app}/gsb_vit.wasm`), read(model));
    writeFileSync(out, loaded.masks(read(pixels)));
  },
  async decide({ model, pixels, top, unknown }) {
    const loaded = await Model.load(read(`${job.app}/gsb_vit.wasm`), read(model));
    const all = read(pixels);
    const size = loaded.height * loaded.width * 3;
    const said = Array.from({ length: all.length / size }, (_, i) => all.subarray(i * size, (i + 1) * size)).map((one) =>
      loaded.predict(one, { top, unknown }),
    );
    return { said, threshold: loaded.unknown?.threshold };
  },
  // What each wrong call says.
  async misuse({ model }) {
    const loaded = await Model.load(read(`${job.app}/gsb_vit.wasm`), read(model));
    const pixels = new Uint8Array(loaded.height * loaded.width * 3);
    const said = {
      threshold: await refusal(() => loaded.predict(pixels, { unknown: true })),
      top: await refusal(() => loaded.predict(pixels, { top: 0 })),
      picture: await refusal(() => loaded.prepare(new Uint8Array(12), -2, -2)),
      logits: await refusal(() => loaded.answers(new Float32Array(2))),
    };
    loaded.free();
    return { ...said, freed: await refusal(() => loaded.logits(pixels)) };
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
