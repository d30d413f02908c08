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
        links = {text: (uri, inside) for text, uri, inside in map(self.link, claim.places())}
        for text, (uri, inside) in links.items():
            if len(line) > 1:
                line += nodes.Text("; ")
            line += nodes.reference("", text, refuri=uri, internal=inside)
        return line

    def link(self, place: str) -> tuple[str, str, bool]:
        """The words of a link, its address, and whether it stays in the book."""
        theme = self.config.html_theme_options
        blob = f"{theme['repository_url']}/blob/{theme['repository_branch']}"
        path, _, name = place.replace("::", "#").partition("#")
        page = Path(path).with_suffix("").as_posix()
        if path.startswith("tests/"):
            words = name.removeprefix("test_").replace("_", " ")
            return f"test: {words}", f"{blob}/{path}#L{line_of(place)}", False
        if path.startswith("results/"):
            return f"table: {Path(path).stem}", f"{blob}/{path}", False
        self.env.note_dependency(str(ROOT / path))
        uri = self.env.app.builder.get_relative_uri(self.env.docname, page)
        if path.startswith("notebooks/"):
            return f"lab: {page.removeprefix('notebooks/')}", uri, True
        anchor = f"equation-{name}" if name.startswith("eq-") else name
        return heading(ROOT / path, name), f"{uri}#{anchor}", True


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
    app.connect("html-page-context", load_filter)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
