// Copies what the package shares with the rest of the repository: the engine, its module and the licence.
import { copyFileSync, mkdirSync } from "node:fs";
import { fileURLToPath } from "node:url";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));

mkdirSync(here("dist"), { recursive: true });
for (const name of ["engine.js", "gsb_vit.wasm"]) copyFileSync(here(`../src/gsb_vit/app/${name}`), here(`dist/${name}`));
copyFileSync(here("../LICENSE"), here("LICENSE"));
