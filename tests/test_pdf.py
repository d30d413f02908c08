"""The PDF: what a page on paper has instead of a screen's, and a missing LaTeX is named."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from docutils import nodes
from sphinx.testing.util import SphinxTestApp

ROOT = Path(__file__).resolve().parents[1]
CONF = """
extensions = ["myst_nb", "sphinx_exercise", "sphinx_proof", "dit_figure", "dit_paper"]
html_baseurl = "https://book.example/"
exercise_style = "solution_follow_exercise"
myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "off"
"""
INDEX = """# Book

What it is.

## The map

```{raw} html
<figure><svg><path stroke-width="2" d="M1 2H30"/><text x="5" y="6">a box</text></svg>
<figcaption>A map.</figcaption></figure>
```

```{toctree}
:caption: Ideas
book/one
notebooks/one
book/api
```
"""
CHAPTER = """# One

```{dit-figure} taken-apart
```

```{prf:proof}
Look at it.
```

```{exercise} Count
:label: ex-count
How many?
```

```{admonition} Hint
:class: dropdown tip
Use your fingers.
```

```{solution} ex-count
:label: sol-count
Ten.
```

Run it: [the lab](../notebooks/one.md), [the code](api.md).

## Further reading

| a | b |
| --- | --- |
| name | short |
| LONG | LONG |
""".replace("LONG", "words " * 30)


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small book of a preface, a chapter, a lab and a reference, as LaTeX."""
    source = tmp_path_factory.mktemp("book")
    pages = {"index.md": INDEX, "book/one.md": CHAPTER}
    pages |= {"notebooks/one.md": "# A lab of cells", "book/api.md": "# All names", "conf.py": CONF}
    for name, text in pages.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text, "utf8")
    (source / "book" / "_static").symlink_to(ROOT / "book" / "_static")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "book" / "_ext"))
        patch.setattr("dit_figure.STATIC", source / "book" / "_static")
        app = SphinxTestApp("latex", srcdir=source)
        app.build()
        app.cleanup()
    (tex,) = (source / "_build" / "latex").glob("*.tex")
    return tex.read_text("utf8")


def test_labs_and_reference_stay_on_the_site_and_links_lead_there(book: str):
    assert r"\part{Ideas}" in book and r"\chapter{One}" in book
    assert "A lab of cells" not in book and "All names" not in book
    assert r"\sphinxhref{https://book.example/notebooks/one.html}" in book
    assert r"\sphinxhref{https://book.example/book/api.html}" in book


def test_the_first_page_is_a_chapter_without_a_number(book: str):
    assert r"\chapter*{About this book}" in book
    assert r"\subsubsection*{The map}" in book and r"\chapter{The map}" not in book


def test_a_moving_figure_stands_still_and_tells_where_it_moves(book: str):
    figure = re.search(
        r"\\begin{figure}(?:(?!\\begin{figure}).)*taken-apart.*?\\end{figure}", book, re.S
    )
    assert r"\sphinxincludegraphics[width=0.800\linewidth]{{taken-apart}.png}" in figure[0]
    assert r"https://book.example/book/one.html\#fig-taken-apart" in figure[0]


def test_a_drawing_is_drawn_again(book: str):
    assert r"\draw[line width=1.44pt, opacity=1] svg {M1 2H30};" in book
    assert r"at (5,6) {a box};" in book and r"\caption{A map.}" in book


def test_hint_in_the_box_of_its_exercise_and_solution_at_the_end(book: str):
    title = "{Exercise 1 (Count)}"
    box = re.search(re.escape(title) + r"(.*?)\\end{sphinxadmonition}", book, re.S)[1]
    assert "How many?" in box and "Use your fingers." in box and "Ten." not in box
    rest = book[book.index(r"\section{Further reading}") :]
    assert (
        rest.index(r"\section{Solutions}") < rest.index("Exercise 1 (Count)") < rest.index("Ten.")
    )
    assert book.count("Ten.") == book.count("Use your fingers.") == 1


def test_a_proof_has_no_empty_title(book: str):
    assert not re.search(r"\\begin{sphinxadmonition}{\w+}\s*(?!{)\s", book)
    assert re.search(r"\\sphinxstyleemphasis{Proof\.} Look at it\.\\hfill\\\(\\square\\\)", book)


def test_a_wide_table_gets_the_width_of_the_line(book: str):
    widths = [tuple(map(int, pair)) for pair in re.findall(r"\\X{(\d+)}{(\d+)}", book)]
    assert len(widths) == 2
    assert sum(width for width, _ in widths) == widths[0][1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import pdf

    yield pdf
    del sys.modules["pdf"]


def test_a_missing_latex_is_named_with_what_to_install(script, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert script.main() == 1
    said = capsys.readouterr().err
    assert "no xelatex, no latexmk" in said
    assert all(package in said for package in ("texlive-xetex", "latexmk", "fonts-wqy-zenhei"))


def test_what_latex_left_open_is_found_across_its_line_breaks(script):
    start = "LaTeX Warning: Reference `equation:book/dit:eq-dit-block' on page 12 undefined"
    line = f"{start:<79}"[:79] + "\n" + (start + " on input line 3.")[79:]
    assert len(script.faults(f"fine\n{line}\n! Missing $ inserted.\nOverfull")) == 2
    assert script.faults("LaTeX Warning: Float too large for page\n") == []


def test_shares_leave_narrow_columns_their_width(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    from table_widths import ROOM, length, shares

    assert shares([[3, 4], [200, 7], [90, 300]]) == [9, 43, 43]
    assert sum(shares([[50], [60], [70]])) <= ROOM
    assert length(nodes.entry("", nodes.paragraph("", "", nodes.math("", r"\alpha_t\,")))) == 2
