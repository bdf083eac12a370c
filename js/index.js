// For browsers and whatever has fetch().
import { loader, readUrl } from "./model.js";

export { Model, ModelError } from "./model.js";
export const load = loader(readUrl, new URL("./dist/gsb_vit.wasm", import.meta.url));
