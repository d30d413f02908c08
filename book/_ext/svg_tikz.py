"""A drawing that stands in a page as SVG, for LaTeX: lines, boxes, circles and words as TikZ."""

from __future__ import annotations

from xml.etree import ElementTree

SCALE = 0.72  # points on paper for a unit of the drawing: its text of 12.5 becomes 9 pt
ANCHORS = {"start": "base west", "middle": "base", "end": "base east"}


def drawing(html: str) -> tuple[str, str]:
    """The TikZ picture and the caption of a ``<figure>`` that holds one ``<svg>``."""
    figure = ElementTree.fromstring(html.replace(' xmlns="http://www.w3.org/2000/svg"', ""))
    lines = "\n".join(draw(figure.find("svg"), {}))
    options = f"x=1pt, y=1pt, xscale={SCALE}, yscale=-{SCALE}, >=Latex"
    picture = rf"\begin{{tikzpicture}}[{options}]" + f"\n{lines}\n" + r"\end{tikzpicture}"
    return picture, " ".join("".join(figure.find("figcaption").itertext()).split())


def draw(element: ElementTree.Element, inherited: dict[str, str]) -> list[str]:
    """The commands of an element and of all that it holds."""
    look = inherited | element.attrib
    match element.tag:
        case "svg" | "g":
            return [line for child in element for line in draw(child, look)]
        case "rect":
            x, y, width, height = (float(look[k]) for k in ("x", "y", "width", "height"))
            corners = f"rounded corners={float(look['rx']) * SCALE:.1f}pt"
            shape = f"({x},{y}) rectangle ({x + width},{y + height})"
            return [rf"\draw[{style(look)}, {corners}] {shape};"]
        case "circle":
            center = f"({look['cx']},{look['cy']})"
            return [rf"\draw[{style(look)}] {center} circle[radius={look['r']}];"]
        case "path":
            return [rf"\draw[{style(look)}] svg {{{look['d']}}};"]
        case "text":
            font = r"\bfseries" * ("font-weight" in look) + r"\itshape" * ("font-style" in look)
            options = f"anchor={ANCHORS[look.get('text-anchor', 'start')]}, inner sep=0"
            node = rf"[{options}, font=\small{font}] at ({look['x']},{look['y']})"
            return [rf"\node{node} {{{element.text}}};"]
    return []


def style(look: dict[str, str]) -> str:
    """How a line looks."""
    dash = ["dashed"] * ("stroke-dasharray" in look)
    arrow = ["->"] * ("marker-end" in look)
    width = f"line width={float(look.get('stroke-width', 1)) * SCALE:.2f}pt"
    return ", ".join([width, f"opacity={look.get('opacity', 1)}", *dash, *arrow])
