"""The runtime in Chromium, in turns with onnxruntime-web on the full-precision twin; every engine on one thread.

    npm install onnxruntime-web
    python benchmarks/browser.py MODEL [--peer node_modules/onnxruntime-web/dist] [--calls 40] [--json]

Needs Chromium and Playwright; with ``--peer`` also the extra ``bench``. Each round runs one picture through every
engine. Times are milliseconds of a call in the page's main thread; the ratio is that of the medians.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from gsb_vit.runtime.packed_file import read

APP = Path(__file__).resolve().parents[1] / "src" / "gsb_vit" / "app"
HOST = "http://bench.invalid"  # answered from a folder; there is no such host
PRECISIONS = ("fp32", "int8-dynamic", "int8-static")
TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".html": "text/html"}
RUN = """async ([files, calls]) => {
    const { Model } = await import("/engine.js");
    const load = async (name) => new Uint8Array(await (await fetch("/" + name)).arrayBuffer());
    const model = await Model.load(await load("gsb_vit.wasm"), await load("model"));
    const pixels = new Uint8Array(3 * model.height * model.width).map((_, i) => (i * 7919) >> 3);
    const engines = { "gsb-vit": () => model.logits(pixels) };
    if (files.length) {
        const ort = await import("/ort.wasm.min.mjs");
        ort.env.wasm.numThreads = 1;
        for (const file of files) {
            const session = await ort.InferenceSession.create(await load(file), { executionProviders: ["wasm"] });
            const input = new ort.Tensor("uint8", pixels, [1, model.height, model.width, 3]);
            engines["onnxruntime-web " + file] = () => session.run({ pixels: input });
        }
    }
    const times = Object.fromEntries(Object.keys(engines).map((name) => [name, []]));
    for (let i = -5; i < calls; ++i) {
        for (const [name, run] of Object.entries(engines)) {
            const start = performance.now();
            await run();
            if (i >= 0) times[name].push(performance.now() - start);
        }
    }
    return times;
}"""


def write_twin(model, folder):
    """Write the twin's ONNX files: → their names."""
    from gsb_vit.bench.peers.prepare import prepare
    from gsb_vit.bench.peers.twin import Twin

    packed = read(model)
    twin = Twin.of(packed.architecture, packed.preprocessing)
    prepare(twin, [("onnxruntime", precision) for precision in PRECISIONS], folder)
    return sorted(path.name for path in folder.glob("*.onnx"))


def measure(folder, files, calls):
    """Return each engine's times in milliseconds, measured in a page that is served from the folder."""

    def answer(route):
        path = folder / route.request.url.removeprefix(HOST).lstrip("/")
        if path.is_file():
            kind = TYPES.get(path.suffix, "application/octet-stream")
            route.fulfill(status=200, body=path.read_bytes(), content_type=kind)
        else:
            route.fulfill(status=404, body="")

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()
        page.route("**/*", answer)
        page.goto(f"{HOST}/index.html")
        times = page.evaluate(RUN, [files, calls])
        version = browser.version
        browser.close()
    return times, version


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--peer", type=Path, help="the folder dist of onnxruntime-web")
    parser.add_argument("--calls", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_twin(arguments.model, folder) if arguments.peer else []
        served = [APP / "engine.js", APP / "gsb_vit.wasm"]
        served += [arguments.peer / file for file in ("ort.wasm.min.mjs", *_runtime(arguments.peer))] if files else []
        for path in served:
            shutil.copy(path, folder / path.name)
        shutil.copy(arguments.model, folder / "model")
        (folder / "index.html").write_text("<!doctype html><title>bench</title>")
        times, version = measure(folder, files, arguments.calls)
    own = statistics.median(times["gsb-vit"])
    rows = [
        {"engine": engine, "best": min(row), "median": statistics.median(row), "ratio": statistics.median(row) / own}
        for engine, row in times.items()
    ]
    if arguments.json:
        print(json.dumps({"chromium": version, "rows": rows}, indent=1))
        return
    print(f"Chromium {version}, one thread, {arguments.calls} calls in turns")
    for row in rows:
        print(
            f"{row['engine']:40} best {row['best']:8.2f} ms  median {row['median']:8.2f} ms  ratio {row['ratio']:6.2f}"
        )


def _runtime(peer):
    return [path.name for path in peer.glob("ort-wasm-simd-threaded.*") if path.stem == "ort-wasm-simd-threaded"]


if __name__ == "__main__":
    main()
