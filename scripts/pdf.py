"""Make the PDF of the book, _build/pdf/diffusion-transformers.pdf.

LaTeX is not among what ``make book`` installs. Where a program or a font is missing, this says
what to install, and stops. It also stops where LaTeX leaves a reference open.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAPER, PDF = ROOT / "_build" / "paper", ROOT / "_build" / "pdf"  # doctrees apart from the site's
NAME = "diffusion-transformers"
PROGRAMS = ("xelatex", "latexmk", "fc-list")
FONTS = ("FreeSerif", "DejaVu Sans Mono", "WenQuanYi Zen Hei")
PACKAGES = (
    "latexmk texlive-xetex texlive-latex-extra texlive-fonts-recommended texlive-plain-generic "
    "fontconfig fonts-freefont-otf fonts-dejavu-core fonts-wqy-zenhei"
)


def missing() -> list[str]:
    """The programs that are not there, or else the fonts."""
    if lacking := [program for program in PROGRAMS if not shutil.which(program)]:
        return lacking
    listed = subprocess.run(["fc-list"], capture_output=True, text=True, check=True).stdout
    return [f"font {font}" for font in FONTS if font not in listed]


def faults(log: str) -> list[str]:
    """What a reader would see of what LaTeX complains about: errors, and references left open."""
    log = re.sub(r"(?<=^.{79})\n", "", log, flags=re.M)  # LaTeX breaks its lines there
    return re.findall(
        r"^(?:! .*|LaTeX Warning: .*(?:Reference|Citation|reference) .* undefined.*)", log, re.M
    )


def main() -> int:
    if lacking := missing():
        print(
            f"make pdf: no {', no '.join(lacking)}. On Debian or Ubuntu, as root:", file=sys.stderr
        )
        print(f"  apt-get install --no-install-recommends {PACKAGES}", file=sys.stderr)
        return 1
    jupyter_book = str(Path(sys.executable).parent / "jupyter-book")
    options = ["--builder", "latex", "--path-output", str(PAPER), "-W", "-n", "--keep-going", "-q"]
    subprocess.run([jupyter_book, "build", ".", *options], cwd=ROOT, check=True)
    latex = PAPER / "_build" / "latex"
    run = ["latexmk", "-norc", "-xelatex", "-interaction=nonstopmode", "-silent", f"{NAME}.tex"]
    code = subprocess.run(run, cwd=latex, check=False).returncode
    found = faults((latex / f"{NAME}.log").read_text("utf8", errors="replace"))
    if code or found:
        print("\n".join(found), f"make pdf: see {latex / NAME}.log", sep="\n", file=sys.stderr)
        return 1
    PDF.mkdir(parents=True, exist_ok=True)
    print(f"The book: {shutil.copy2(latex / f'{NAME}.pdf', PDF)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
