"""Equations under test: below a numbered equation, the function that computes it and its test.

The table is book/equations.yml, ``label: {code: a public name, test: path::name}``; nothing stands
in the pages themselves. tests/test_equations.py holds the table against pages, code and tests.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "book" / "equations.yml"


def short_name(code: str) -> str:
    """``dit_edu.forward.ForwardProcess.q_sample`` without its module."""
    *_, owner, name = code.split(".")
    return f"{owner}.{name}" if owner[0].isupper() else name


def line_of(test: str) -> int:
    """The line on which a test begins; ``test`` is ``path::name``."""
    path, name = test.split("::")
    text = (ROOT / path).read_text("utf8")
    return text[: re.search(rf"^def {name}\(", text, re.M).start()].count("\n") + 1


def below(code: str, test: str, docname: str, blob: str) -> nodes.paragraph:
    """The line below an equation; ``blob`` is the address of the repository's files."""
    path, name = test.split("::")
    function = pending_xref(
        "",
        nodes.literal("", short_name(code)),
        refdomain="py",
        reftype="obj",
        reftarget=code,
        refexplicit=True,
        refdoc=docname,
    )
    source = nodes.reference(
        "", "", nodes.literal("", name), refuri=f"{blob}/{path}#L{line_of(test)}", reftitle=test
    )
    words = nodes.Text("computed by "), function, nodes.Text(", checked by "), source
    return nodes.paragraph("", "", *words, classes=["under-test"])


def link_equations(app: Sphinx, doctree: nodes.document) -> None:
    """Put the line below every equation of a page that the table names."""
    table = yaml.safe_load(TABLE.read_text("utf8"))
    theme = app.config.html_theme_options
    blob = f"{theme['repository_url']}/blob/{theme['repository_branch']}"
    for equation in list(doctree.findall(nodes.math_block)):
        if row := table.get(equation.get("label")):
            app.env.note_dependency(str(TABLE))
            line = below(row["code"], row["test"], app.env.docname, blob)
            equation.parent.insert(equation.parent.index(equation) + 1, line)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-read", link_equations)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
