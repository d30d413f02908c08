"""The book's own Sphinx extension.

It drops remote scripts, keeps the alt text of notebook images, and draws the table of ideas.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from docutils import nodes
from docutils.parsers.rst import Directive
from myst_nb.core.render import MimeData, NbElementRenderer
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

BOOK = Path(__file__).resolve().parents[1]


def drop_thebe(
    app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None
) -> None:
    """Remove the scripts of sphinx-thebe: they load from a CDN and declare one constant twice."""

    def is_thebe(script: object) -> bool:
        body = getattr(script, "attributes", {}).get("body") or ""
        return "sphinx-thebe" in str(getattr(script, "filename", "")) or "THEBE_JS_URL" in body

    context["script_files"] = [s for s in context["script_files"] if not is_thebe(s)]


def keep_alt_text(render_image):
    """Wrap myst-nb's renderer, which knows no alt text in an output's own metadata.

    The text stands where IPython puts it, in ``output.metadata["image/png"]["alt"]``.
    """

    def render(self: NbElementRenderer, data: MimeData) -> list[nodes.Element]:
        found = render_image(self, data)
        alt = data.output_metadata.get(data.mime_type, {}).get("alt")
        for node in found if alt else ():
            node["alt"] = alt
        return found

    return render


def chapters_of_changed_labs(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Build a chapter again when its lab has changed: it shows the lab's numbers."""
    labs = (name for name in added | changed if name.startswith("notebooks/"))
    chapters = (name.replace("notebooks/", "book/", 1) for name in labs)
    return [name for name in chapters if name in env.found_docs]


class IdeaTable(Directive):
    """``{idea-table}``: book/ideas.yml as a table of links to chapter, lab and code."""

    def run(self) -> list[nodes.Node]:
        ideas = yaml.safe_load((BOOK / "ideas.yml").read_text(encoding="utf8"))
        self.state.document.settings.env.note_dependency(str(BOOK / "ideas.yml"))
        lines = ["| Idea | Chapter | Lab | Code |", "|---|---|---|---|"]
        for idea in ideas:
            chapter, lab = (page_link(idea[place]) for place in ("chapter", "lab"))
            code = ", ".join(f"{{py:mod}}`{module}`" for module in idea["modules"])
            lines.append(f"| {idea['title']} | {chapter} | {lab} | {code or '–'} |")
        table = nodes.container(classes=["idea-table"])
        self.state.nested_parse(lines, self.content_offset, table)
        return [table]


def page_link(path: str | None) -> str:
    if path in (None, "to come"):
        return path or "–"
    return f"[{Path(path).stem}](/{path})"


def setup(app: Sphinx) -> dict[str, bool]:
    NbElementRenderer.render_image = keep_alt_text(NbElementRenderer.render_image)
    app.add_directive("idea-table", IdeaTable)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("env-get-outdated", chapters_of_changed_labs)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
