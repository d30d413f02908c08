"""Compute the data of the figures that move, and write it where the book reads it.

python scripts/figures.py [NAME ...]     all figures, or only some
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dit_edu.lab.figures import FIGURES

FOLDER = Path(__file__).resolve().parents[1] / "book" / "_static" / "figures"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIGURES)}")
    names = parser.parse_args().names or list(FIGURES)
    if unknown := set(names) - set(FIGURES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; allowed: {', '.join(FIGURES)}")
    FOLDER.mkdir(exist_ok=True)
    for name in names:
        data = FIGURES[name]().save(FOLDER)[0]
        print(f"{data.stat().st_size / 1000:6.1f} kB  {name}")


if __name__ == "__main__":
    main()
