"""Node, where this machine has one that runs WebAssembly with SIMD and ES modules."""

import json
import re

from native_build import needed, run
from needs import skip_without
from paths import SOURCE

APP = SOURCE / "gsb_vit" / "app"
OLDEST = 18


def run_script(script, job, folder):
    """Run a script with a job, an object that names its task: → what it printed as JSON."""
    node = needed("node", "the engine in Node")
    version = run(node, "--version").stdout.decode().strip()
    if int(re.match(r"v(\d+)", version)[1]) < OLDEST:
        skip_without("the engine in Node", f"Node {OLDEST}")
    path = folder / "job.json"
    path.write_text(json.dumps({"app": str(APP), **job}, default=str))
    text = run(node, script, path).stdout.decode()
    return None if text == "undefined\n" else json.loads(text)
