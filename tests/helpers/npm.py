"""npm, where this machine has it: packages that tests need, and the npm package of this repository."""

import json

from native_build import locked, needed, run
from needs import skip_without
from paths import ROOT

JS = ROOT / "js"
QUIET = ("--no-audit", "--no-fund", "--no-update-notifier")


def installed(part, name, version):
    """Return the folder node_modules with a package of the registry, kept in build/tests; skip where npm gets none."""
    npm = needed("npm", part)
    with locked("npm") as folder:
        manifest = folder / "node_modules" / name / "package.json"
        if not manifest.is_file() or json.loads(manifest.read_text())["version"] != version:
            options = (*QUIET, "--save-exact", "--fetch-retries=0", "--fetch-timeout=60000", "--prefix", folder)
            if run(npm, "install", *options, f"{name}@{version}", ok=False).returncode != 0:
                skip_without(part, f"{name} from npm")
    return folder / "node_modules"


def packed(folder):
    """Pack js/ as `npm pack` does and return the file."""
    npm = needed("npm", "the npm package")
    with locked("npm"):
        run(npm, "pack", *QUIET, "--pack-destination", folder, cwd=JS)
    [file] = folder.glob("gsb-vit-*.tgz")
    return file


def project(folder):
    """Install the packed package into an empty project, without a network: → the project's folder."""
    file = packed(folder)
    place = folder / "project"
    place.mkdir()
    (place / "package.json").write_text('{ "private": true }\n')
    run(needed("npm"), "install", *QUIET, "--offline", file, cwd=place)
    return place
