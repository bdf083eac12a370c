// For Node: a place may also be a path.
import { readFile } from "node:fs/promises";
import { loader, readUrl } from "./model.js";

const isFetched = (place) => /^(https?|data|blob):/i.test(place);
const isFileUrl = (place) => /^file:/i.test(place);

async function read(place) {
  if (isFetched(place)) return readUrl(place);
  return new Uint8Array(await readFile(isFileUrl(place) ? new URL(place) : place));
}

export { Model, ModelError } from "./model.js";
export const load = loader(read, new URL("./dist/gsb_vit.wasm", import.meta.url));
