"""``{dit-figure} NAME``: a figure that moves in the page, and stands still where nothing can move.

The data lies in book/_static/figures/NAME.json, its still in NAME.png. The label is ``fig-NAME``.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

STATIC = Path(__file__).resolve().parents[1] / "_static"


class DitFigure(SphinxDirective):
    """A ``<dit-figure>`` element around its still picture, with a numbered caption."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        data = STATIC / "figures" / f"{name}.json"
        if not data.is_file():
            found = sorted(path.stem for path in data.parent.glob("*.json"))
            raise self.error(f"figure {name!r} is unknown; allowed: {', '.join(found) or 'none'}.")
        self.env.note_dependency(str(data))
        content = json.loads(data.read_text("utf8"))

        source = escape(f"_static/figures/{name}.json")
        still = f"/{data.with_suffix('.png').relative_to(self.env.srcdir).as_posix()}"
        label = f"fig-{name}"
        figure = nodes.figure(
            "",
            nodes.raw("", f'<dit-figure data-src="{source}">', format="html"),
            nodes.image(uri=still, alt=content["alt"]),
            nodes.raw("", "</dit-figure>", format="html"),
            align="default",
            names=[label],
            classes=["dit-figure-box"],
        )
        first, *rest = self.parse_text_to_nodes(content["caption"])
        figure += nodes.caption("", "", *first.children)
        if rest:
            figure += nodes.legend("", *rest)
        self.set_source_info(figure)
        self.state.document.note_explicit_target(figure)
        return [figure]


def load_script(
    app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None
) -> None:
    """Load the element's script and style on the pages that hold one."""
    raw = doctree.findall(nodes.raw) if doctree is not None else ()
    if any("<dit-figure" in node.astext() for node in raw):
        app.add_js_file("dit-figure.js", loading_method="defer")
        app.add_css_file("dit-figure.css")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("dit-figure", DitFigure)
    app.connect("html-page-context", load_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
