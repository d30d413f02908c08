"""Run the checks of the project, all or some: ``python scripts/check.py [SECTION ...]``.

Every section runs even where an earlier one failed; the exit status is 1 if any failed. The last
line adds up the tests.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PYTEST = [sys.executable, "-m", "pytest", "-q"]
TWO = ["-n", "2", "--dist", "worksteal"]  # who has nothing left to do helps the other
OUTCOMES = ("failed", "passed", "skipped", "errors", "xfailed")


def notebooks() -> list[str]:
    found = (p.relative_to(ROOT) for p in sorted((ROOT / "notebooks").rglob("*.ipynb")))
    return [str(p) for p in found if ".ipynb_checkpoints" not in p.parts]


def commands(section: str) -> list[list[str]]:
    """Return the commands of one section, in the order in which they run."""
    if section == "lint":
        ruff = str(BIN / "ruff")
        return [
            [ruff, "check", "--quiet", "."],
            [ruff, "format", "--check", "--quiet", "."],
            [str(BIN / "lint-imports"), "--no-logo"],
        ]
    if section == "units":
        return [[*PYTEST, "tests", *TWO, "-m", "not built and not browser"]]
    if section == "notebooks":
        # loadscope keeps the cells of one notebook on one worker, in their order
        sanitize = ["--nbval-sanitize-with", "tests/nbval_sanitize.cfg"]
        found = notebooks()
        run = [*PYTEST, "--nbval", *sanitize, "-n", "2", "--dist", "loadscope", *found]
        return [run] if found else []
    if section == "book":
        build = [str(BIN / "jupyter-book"), "build", ".", "-W", "-n", "--keep-going", "-q"]
        return [build, [*PYTEST, "tests", "-m", "built and not browser"]]
    return [[*PYTEST, "tests/browser", *TWO]]


SECTIONS = ("lint", "units", "notebooks", "book", "browser")


def run(command: list[str], tally: Counter[str]) -> bool:
    """Run one command, pass its output on, add pytest's closing line to ``tally``."""
    print("$", " ".join(command).replace(str(ROOT) + os.sep, ""), flush=True)
    env = {"OMP_NUM_THREADS": "1", **os.environ}  # two workers share the cores
    lines = []
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    closing = lines[-1] if lines and command[1:3] == ["-m", "pytest"] else ""
    for count, outcome in re.findall(r"(\d+) (\w+)", closing):
        tally["errors" if outcome == "error" else outcome] += int(count)
    return process.returncode == 0


def main(wanted: list[str]) -> int:
    if unknown := [name for name in wanted if name not in SECTIONS]:
        print(f"check: {unknown[0]!r} is unknown; allowed: {', '.join(SECTIONS)}.")
        return 2
    start = time.monotonic()
    tally: Counter[str] = Counter()
    verdicts = {}
    for section in wanted or SECTIONS:
        print(f"\n===== {section} =====", flush=True)
        began = time.monotonic()
        good = all([run(command, tally) for command in commands(section)])
        verdicts[section] = f"{'ok' if good else 'FAILED':6} {time.monotonic() - began:6.1f} s"
    print("\n===== summary =====")
    for section, verdict in verdicts.items():
        print(f"{section:10} {verdict}")
    bad = [section for section, verdict in verdicts.items() if "FAILED" in verdict]
    counts = [f"{tally[outcome]} {outcome}" for outcome in OUTCOMES if tally[outcome]]
    words = ", ".join([*counts, *(f"{section} failed" for section in bad)]) or "no tests"
    print(f"===== {words} in {time.monotonic() - start:.2f}s =====")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
