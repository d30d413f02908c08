"""The claims ledger, drawn from book/claims.yml.

``{claims} T`` lists the claims of the part with that letter, each with its verdict and links to
its evidence. book/_static/claims.js adds the filter; without it all claims are shown.
"""

from __future__ import annotations

from pathlib import Path

from dit_equations import line_of
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from dit_edu.lab.ledger import KEPT, LEDGER, PARTS, VERDICTS, Claim, heading, read_ledger

ROOT = Path(__file__).resolve().parents[2]
WHO = {"notes": "the notes", "ours": "this book"}


class Claims(SphinxDirective):
    """The claims of one part of the book."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        part = PARTS[directives.choice(self.arguments[0], list(map(str.lower, PARTS))).upper()]
        self.env.note_dependency(str(LEDGER))
        claims, _ = read_ledger()
        return [self.draw(claim) for claim in claims if claim.part == part]

    def draw(self, claim: Claim) -> nodes.container:
        """A claim as a box: its head, what is claimed, what we found, and the evidence."""
        classes = ["claim", f"verdict-{nodes.make_id(claim.verdict)}"]
        classes += [f"part-{claim.row[0].lower()}", f"who-{who(claim)}"]
        box = nodes.container(names=[f"claim-{nodes.make_id(claim.id)}"], classes=classes)
        self.state.document.note_explicit_target(box)
        verdict = f"{VERDICTS[claim.verdict]} {claim.verdict}"
        box += nodes.paragraph(
            "",
            "",
            nodes.strong("", claim.id, classes=["claim-id"]),
            nodes.Text(" "),
            nodes.inline("", verdict, classes=["claim-verdict"]),
            classes=["claim-head"],
        )
        said = f"*({WHO[claim.who]})*" if claim.who in WHO else f"{{cite}}`{claim.who}`"
        why = f" *Why not:* {claim.why}" if claim.why else ""
        for name, text in (
            ("claim-said", f"{claim.claim} {said}"),
            ("claim-found", f"{claim.found}{why}"),
        ):
            part = nodes.container(classes=[name])
            self.state.nested_parse([KEPT.sub(number, text)], self.content_offset, part)
            box += part
        box += self.evidence(claim)
        return box

    def evidence(self, claim: Claim) -> nodes.paragraph:
        """The links, each once."""
        line = nodes.paragraph("", "Evidence: ", classes=["claim-evidence"])
        links = dict(map(self.link, claim.places()))
        for words, address in links.items():
            if len(line) > 1:
                line += nodes.Text("; ")
            line += nodes.reference("", words, **address)
        return line

    def link(self, place: str) -> tuple[str, dict[str, object]]:
        """The words of a link, and where it leads: out of the book, or to one of its pages."""
        theme = self.config.html_theme_options
        blob = f"{theme['repository_url']}/blob/{theme['repository_branch']}"
        path, _, name = place.replace("::", "#").partition("#")
        if path.startswith("tests/"):
            words = name.removeprefix("test_").replace("_", " ")
            return f"test: {words}", {"refuri": f"{blob}/{path}#L{line_of(place)}"}
        if path.startswith("results/"):
            return f"table: {Path(path).stem}", {"refuri": f"{blob}/{path}"}
        self.env.note_dependency(str(ROOT / path))
        page = Path(path).with_suffix("").as_posix()
        to = {"internal": True, "page": page, "anchor": ""}
        if path.startswith("notebooks/"):
            return f"lab: {page.removeprefix('notebooks/')}", to
        anchor = f"equation-{name}" if name.startswith("eq-") else name
        return heading(ROOT / path, name), to | {"anchor": f"#{anchor}"}


def lead_to_pages(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Give the links to pages their addresses, which no builder knows before it writes."""
    for link in doctree.findall(nodes.reference):
        if page := link.get("page"):
            link["refuri"] = app.builder.get_relative_uri(docname, page) + link["anchor"]


def who(claim: Claim) -> str:
    return claim.who if claim.who in WHO else "papers"


def number(kept) -> str:
    """``[[lab::key:format]]`` as myst-nb's role."""
    lab, key, form = kept.groups()
    return f"{{glue:text}}`../notebooks/{lab}.ipynb::{key}{form or ''}`"


def load_filter(
    app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None
) -> None:
    """Load the filter where there are claims."""
    boxes = doctree.findall(nodes.container) if doctree is not None else ()
    if any("claim" in box["classes"] for box in boxes):
        app.add_css_file("claims.css")
        app.add_js_file("claims.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("claims", Claims)
    app.connect("doctree-resolved", lead_to_pages)
    app.connect("html-page-context", load_filter)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
