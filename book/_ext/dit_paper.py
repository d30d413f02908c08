"""The book on paper (``make pdf``): the pages that are read, and what a screen would do for them.

Labs and the reference of the package stay on the site; links to them lead there. What moves stands
still and tells where it moves, hints stand below their exercise, solutions at the end of a chapter.
"""

from __future__ import annotations

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.builders.latex import LaTeXBuilder
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx_exercise.nodes import is_exercise_node, is_solution_node
from sphinx_proof.nodes import proof_node
from svg_tikz import drawing
from table_widths import fit

SITE_ONLY = ("notebooks/", "book/api")


class Paper(LaTeXBuilder):
    """LaTeX of the chapters; a link to a page that is not among them leads to the site."""

    def get_target_uri(self, docname: str, typ: str | None = None) -> str:
        if docname.startswith(SITE_ONLY):
            return f"{self.config.html_baseurl}{docname}.html"
        return f"%{docname}"

    def get_contentsname(self, indexfile: str) -> str:
        return "Contents"


def choose_pages(app: Sphinx, doctree: nodes.document) -> None:
    """Take the pages that stay on the site out of the contents; a caption there begins a part."""
    if not isinstance(app.builder, Paper):
        return
    for toctree in list(doctree.findall(addnodes.toctree)):
        kept = [name for name in toctree["includefiles"] if not name.startswith(SITE_ONLY)]
        toctree["includefiles"] = kept
        if caption := toctree.get("caption"):
            toctree.parent.insert(0, nodes.raw("", rf"\part{{{caption}}}", format="latex"))


class ForPaper(SphinxPostTransform):
    """What paper cannot do, done otherwise; after exercises have got their titles."""

    default_priority = 30
    formats = ("latex",)

    def run(self) -> None:
        make_preface(self.document[0])
        for proof in list(self.document.findall(proof_node)):
            proof.replace_self(plain_proof(proof))
        for table in self.document.findall(nodes.table):
            fit(table)
        for raw in list(self.document.findall(nodes.raw)):
            if raw["format"] == "html" and "<svg" in raw.astext():
                picture, caption = drawing(raw.astext())
                words = nodes.caption("", caption)
                raw.replace_self(nodes.figure("", nodes.raw("", picture, format="latex"), words))
        for box in list(self.document.findall(nodes.container)):
            if box["ids"]:  # LaTeX forgets the name of a container
                box.insert(0, nodes.target("", "", ids=box["ids"]))
        for link in self.document.findall(nodes.reference):
            if link.get("anchor", "").startswith("#equation-"):  # and that of an equation
                link["anchor"] = ""
        for page in list(self.document.findall(addnodes.start_of_file)):
            if next(page.findall(nodes.citation), None):  # LaTeX gives them a chapter
                page.replace_self(page[0].children[1:])
                continue
            for figure in page.findall(nodes.figure):
                if "dit-figure-box" in figure["classes"]:
                    anchor = f"#{figure['ids'][0]}" if figure["ids"] else ""
                    say_where(figure, f"{self.config.html_baseurl}{page['docname']}.html{anchor}")
            exercises = list(page.findall(is_exercise_node))
            for exercise in exercises:
                take_hints(exercise)
            if solutions := list(page.findall(is_solution_node)):
                page[0] += put_together(solutions, exercises)


def make_preface(book: nodes.section) -> None:
    """The first page as a chapter without a number; the contents stand for its table of ideas."""
    for table in [box for box in book.findall(nodes.container) if "idea-table" in box["classes"]]:
        table.parent.remove(table)
    for section in [child for child in book if isinstance(child, nodes.section)]:
        head = nodes.rubric("", "", *section[0].children, ids=section["ids"])
        section.replace_self([head, *section[1:]])
    start = r"\chapter*{About this book}\addcontentsline{toc}{chapter}{About this book}"
    book.insert(1, nodes.raw("", start, format="latex"))


def say_where(figure: nodes.figure, uri: str) -> None:
    """Leave a figure room on its page, and add to its caption where it moves."""
    next(figure.findall(nodes.image))["width"] = "80%"
    caption = next(figure.findall(nodes.caption))
    caption += [nodes.Text(" "), nodes.reference("", "It moves on the site.", refuri=uri)]


def lead(body: list[nodes.Node], word: str) -> list[nodes.Node]:
    """A body that begins with a word in italics, in its first paragraph where there is one."""
    if not isinstance(body[0], nodes.paragraph):
        body.insert(0, nodes.paragraph())
    body[0].insert(0, [nodes.emphasis("", word), nodes.Text(" ")])
    return body


def plain_proof(proof: proof_node) -> list[nodes.Node]:
    """A proof without a box: its word in italics, and a square at its end."""
    body = list(proof[0].children)
    first = next(body[0].findall(nodes.Text))
    first.parent.replace(first, nodes.Text(first.removeprefix("Proof. ")))
    if not isinstance(body[-1], nodes.paragraph):
        body.append(nodes.paragraph())
    body[-1] += nodes.raw("", r"\hfill\(\square\)", format="latex")
    return lead(body, "Proof.")


def take_hints(exercise: nodes.Element) -> None:
    """Bring the folded hints that follow an exercise into its box."""
    while isinstance(hint := exercise.next_node(siblings=True, descend=False), nodes.admonition):
        if not hint[0].astext().startswith("Hint"):
            return
        hint.parent.remove(hint)
        exercise += lead(list(hint.children[1:]), f"{hint[0].astext()}.")


def put_together(solutions: list[nodes.Element], exercises: list[nodes.Element]) -> nodes.section:
    """The solutions as a section, each below the title of its exercise."""
    titles = {exercise["label"]: exercise[0] for exercise in exercises}
    section = nodes.section("", nodes.title("", "Solutions"), ids=["solutions"])
    for solution in solutions:
        solution.parent.remove(solution)
        title = titles[solution["target_label"]].deepcopy()
        section += [nodes.rubric("", "", *title.children), *solution.children[1:]]
    return section


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_builder(Paper, override=True)
    app.add_post_transform(ForPaper)
    app.connect("doctree-read", choose_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
