// What tests/js/test_package.py asks of the installed package: node use.mjs JOB.json → JSON. It lies in the project.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { load, Model, ModelError } from "gsb-vit";

const job = JSON.parse(readFileSync(process.argv[2], "utf8"));
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
  async answer({ model, pictures, top, unknown }) {
    const loaded = await load(model);
    const said = pictures.map(({ path, width, height }) => {
      const picture = { data: read(path), width, height };
      const { data, ...masks } = loaded.masks(picture);
      return {
        logits: [...loaded.logits(picture)],
        answers: loaded.predict(picture, { top, unknown }),
        masks: { ...masks, ones: data.reduce((a, b) => a + b, 0), bytes: data.length },
      };
    });
    const { classes, width, height, size, unknown: threshold } = loaded;
    return { said, classes, width, height, size, threshold, isModel: loaded instanceof Model };
  },
  async sources({ model, picture: { path, width, height } }) {
    const bytes = read(model);
    const wasm = await WebAssembly.compile(read(job.wasm));
    const ways = {
      path: [model],
      url: [pathToFileURL(model)],
      text: [pathToFileURL(model).href],
      bytes: [bytes],
      buffer: [bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length)],
      blob: [new Blob([bytes])],
      http: [job.http],
      module: [bytes, { wasm }],
      wasm: [bytes, { wasm: job.wasm }],
      inside: [bytes, { wasm: createRequire(import.meta.url).resolve("gsb-vit/gsb_vit.wasm") }],
    };
    const found = {};
    for (const [name, way] of Object.entries(ways)) {
      found[name] = [...(await load(...way)).logits({ data: read(path), width, height })];
    }
    return found;
  },
  async refuse({ model, missing, picture: { path, width, height } }) {
    const loaded = await load(model);
    const picture = { data: read(path), width, height };
    const said = {
      missing: await refusal(() => load(missing)),
      http: await refusal(() => load(job.http + "nothing")),
      noModel: await refusal(() => load(path)),
      number: await refusal(() => load(7)),
      wasm: await refusal(() => load(model, { wasm: missing })),
      nothing: await refusal(() => loaded.predict()),
      array: await refusal(() => loaded.logits({ data: [1, 2, 3], width: 1, height: 1 })),
      size: await refusal(() => loaded.logits({ ...picture, width: width + 1 })),
      top: await refusal(() => loaded.predict(picture, { top: 1.5 })),
      unknown: await refusal(() => loaded.predict(picture, { unknown: true })),
    };
    loaded.free();
    return { ...said, freed: await refusal(() => loaded.masks(picture)), again: await refusal(() => loaded.free()) };
  },
};

console.log(JSON.stringify(await tasks[job.task](job)));
