"""What moves in the page, and stands still where nothing can move.

``{dit-figure} NAME`` shows the data of book/_static/figures/NAME.json; its still is NAME.png, its
label ``fig-NAME``. With the option ``again`` it has none: its place is on another page.
``{dit-model} NAME`` runs the model of book/_static/models/NAME.js; the options ``still`` and
``alt`` give its still, the content gives its caption; its label is ``model-NAME``.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

STATIC = Path(__file__).resolve().parents[1] / "_static"


class Moving(SphinxDirective):
    """An element around its still picture, with a numbered caption."""

    required_arguments = 1
    folder: str
    suffix: str
    element: str

    def file(self) -> Path:
        """What the element loads.

        Raises:
            DirectiveError: there is no such file.
        """
        name, folder = self.arguments[0], STATIC / self.folder
        data = folder / f"{name}{self.suffix}"
        if not data.is_file():
            found = ", ".join(sorted(path.stem for path in folder.glob(f"*{self.suffix}")))
            raise self.error(f"{self.element} {name!r} is unknown; allowed: {found or 'none'}.")
        self.env.note_dependency(str(data))
        return data

    def figure(self, label: str | None, still: Path, alt: str, caption: str) -> list[nodes.Node]:
        source = escape(f"_static/{self.folder}/{self.arguments[0]}{self.suffix}")
        uri = f"/{still.relative_to(self.env.srcdir).as_posix()}"
        figure = nodes.figure(
            "",
            nodes.raw("", f'<{self.element} data-src="{source}">', format="html"),
            nodes.image(uri=uri, alt=alt),
            nodes.raw("", f"</{self.element}>", format="html"),
            align="default",
            names=[label] if label else [],
            classes=["dit-figure-box"],
        )
        first, *rest = self.parse_text_to_nodes(caption)
        figure += nodes.caption("", "", *first.children)
        if rest:
            figure += nodes.legend("", *rest)
        self.set_source_info(figure)
        if label:
            self.state.document.note_explicit_target(figure)
        return [figure]


class DitFigure(Moving):
    """Data that was computed beforehand, with its own caption and alt text."""

    folder, suffix, element = "figures", ".json", "dit-figure"
    option_spec: ClassVar = {"again": directives.flag}

    def run(self) -> list[nodes.Node]:
        data = self.file()
        content = json.loads(data.read_text("utf8"))
        still = data.with_suffix(".png")
        label = None if "again" in self.options else f"fig-{data.stem}"
        return self.figure(label, still, content["alt"], content["caption"])


class DitModel(Moving):
    """A model that draws in the page."""

    folder, suffix, element = "models", ".js", "dit-model"
    has_content = True
    option_spec: ClassVar = {
        "still": directives.unchanged_required,
        "alt": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        self.assert_has_content()
        if missing := self.option_spec.keys() - self.options:
            raise self.error(f"dit-model lacks the option {', '.join(sorted(missing))}.")
        name = f"model-{self.file().stem}"
        still = STATIC / self.options["still"]
        return self.figure(name, still, self.options["alt"], "\n".join(self.content))


SCRIPTS = {"dit-figure": ["dit-figure.js"], "dit-model": ["dit-net.js", "dit-model.js"]}


def load_script(
    app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None
) -> None:
    """Load what the elements of a page need; a model is a figure too."""
    raw = [node.astext() for node in doctree.findall(nodes.raw)] if doctree is not None else []
    held = [element for element in SCRIPTS if any(f"<{element} " in text for text in raw)]
    if held:
        app.add_css_file("dit-figure.css")
    for element in dict.fromkeys(["dit-figure", *held] if held else []):
        for script in SCRIPTS[element]:
            app.add_js_file(script, loading_method="defer")


def formulas_later(
    app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None
) -> None:
    """Where there are figures, let dit-figure.js start MathJax, which takes most of a second."""
    scripts = context["script_files"]
    if not any(str(script.filename).endswith("dit-figure.js") for script in scripts):
        return
    context["script_files"] = [
        type(script)(script.filename, priority=script.priority, type="text/later")
        if "mathjax/" in str(script.filename)
        else script
        for script in scripts
    ]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("dit-figure", DitFigure)
    app.add_directive("dit-model", DitModel)
    app.connect("html-page-context", load_script)
    app.connect("html-page-context", formulas_later, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
