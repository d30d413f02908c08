"""Does a scene show what its caption says? A judge that looks at pixels, and learns nothing.

It cuts an image into coloured patches that hang together, takes each for an object, and compares
what it finds with what the words ask for: how many, in which colours, of which shapes, which shape
in which colour, and which side of which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.ndimage import binary_dilation
from scipy.ndimage import label as components
from torch import Tensor

from dit_edu.lab.scenes import COLOURS, SHAPES, recognise

ATTRIBUTES = ("count", "colour", "shape", "pairs", "position")
RELATIONS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}  # (x, y), y down
_SEEN = 0.25  # the least chroma of a pixel that belongs to an object
_SPECK = 4  # objects have at least so many pixels


@dataclass(frozen=True)
class Object:
    """One object: its shape and colour as words ("" where no shape is seen), and its centre."""

    shape: str
    colour: str
    centre: tuple[float, float]


def asked_for(caption: str) -> tuple[list[tuple[str, str]], list[tuple[int, int]]]:
    """What a caption asks for: each object's (colour, shape), and where the first lies.

    Returns:
        The pairs, and for each object but the first a direction (x, y) with y down, that of the
        first object as seen from it.
    """
    words = caption.split()
    pairs = [(c, s) for c, s in pairwise(words) if c in COLOURS and s in SHAPES]
    return pairs, [RELATIONS[word] for word in words if word in RELATIONS]


def objects(image: Tensor) -> list[Object]:
    """The objects of an image (3, H, H) in [-1, 1], the largest first."""
    rgb = (image.double().numpy() + 1) / 2  # (3, H, H)
    chroma = rgb.max(0) - rgb.min(0)  # (H, H)
    names, palette = list(COLOURS), np.array(list(COLOURS.values()))
    unit = palette / np.linalg.norm(palette, axis=1, keepdims=True)  # (4, 3): shades are alike
    hue = np.einsum("chw,kc->khw", rgb, unit).argmax(0)  # (H, H)
    found = []
    for k, name in enumerate(names):
        places, n = components((chroma >= _SEEN) & (hue == k))
        for i in range(1, n + 1):
            mask = places == i  # (H, H)
            if (size := int(mask.sum())) >= _SPECK:
                ys, xs = np.nonzero(mask)
                found.append((size, name, (float(xs.mean()), float(ys.mean())), mask))
    found.sort(key=lambda each: -each[0])
    if not found:
        return []
    alone = torch.stack([_alone(image, mask) for *_, mask in found])
    seen = recognise(alone).tolist()
    return [
        Object(SHAPES[c // len(COLOURS)] if c >= 0 else "", name, centre)
        for c, (_, name, centre, _) in zip(seen, found, strict=True)
    ]


def _alone(image: Tensor, mask: np.ndarray) -> Tensor:
    """The image with all but one object, and the pixels around it, turned to grey."""
    keep = torch.from_numpy(binary_dilation(mask, iterations=1, structure=np.ones((3, 3))))
    grey = image.mean(0, keepdim=True).expand_as(image)
    return torch.where(keep, image, grey)


def relation(one: Object, other: Object) -> tuple[int, int]:
    """Where ``one`` lies as seen from ``other``, by the rule of captions: (x, y)."""
    dx, dy = one.centre[0] - other.centre[0], one.centre[1] - other.centre[1]
    if abs(dx) >= abs(dy):
        return (-1 if dx < 0 else 1, 0)
    return (0, -1 if dy < 0 else 1)


def judged(image: Tensor, caption: str) -> dict[str, bool]:
    """What an image gets right of its caption, by attribute.

    ``count``: as many objects as named. ``colour``, ``shape``: the right ones, each as often as
    named. ``pairs``: every shape in its own colour. ``position``, where the caption says one: the
    first object and each other are there, told by what sets them apart, and lie as it says.
    """
    pairs, directions = asked_for(caption)
    found = objects(image)
    colours, forms = zip(*pairs, strict=True)
    right = {
        "count": len(found) == len(pairs),
        "colour": Counter(o.colour for o in found) == Counter(colours),
        "shape": Counter(o.shape for o in found) == Counter(forms),
        "pairs": Counter((o.colour, o.shape) for o in found) == Counter(pairs),
    }
    if directions:
        places = [_named(found, pairs, k) for k in range(len(pairs))]
        right["position"] = all(
            places[0] is not None and o is not None and relation(places[0], o) == where
            for o, where in zip(places[1:], directions, strict=True)
        )
    return right


def _named(found: Sequence[Object], pairs: Sequence[tuple[str, str]], k: int) -> Object | None:
    """The one object that object k of a caption can be: by its colour if no other has it."""
    colour, shape = pairs[k]
    alone = [c for c, _ in pairs].count(colour) == 1
    able = [o for o in found if o.colour == colour and (alone or o.shape == shape)]
    return able[0] if len(able) == 1 else None


def prompt_accuracy(images: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """The share of captions that images get right, by attribute; and of all that was asked.

    Args:
        images: (n, 3, H, H) in [-1, 1].
        captions: n of them.

    Returns:
        A share for each of ``ATTRIBUTES``, ``position`` among the captions that say one (if any),
        and ``all``. And ``binding``: of the images that have the right colours and shapes, of
        captions with different ones, the share with every shape in its own colour (if there are
        any); to give colours to shapes by chance makes it 1/2 for two objects.
    """
    rows = [judged(image, caption) for image, caption in zip(images, captions, strict=True)]
    placed = [row["position"] for row in rows if "position" in row]
    found = {name: [row[name] for row in rows] for name in ATTRIBUTES if name != "position"}
    found |= {"position": placed} if placed else {}
    free = [row["pairs"] for row, c in zip(rows, captions, strict=True) if _bindable(row, c)]
    found |= {"binding": free} if free else {}
    found["all"] = [all(row.values()) for row in rows]
    return {name: float(np.mean(right)) for name, right in found.items()}


def _bindable(row: dict[str, bool], caption: str) -> bool:
    """Whether colours and shapes are right, and could have been put together in another way."""
    colours, forms = map(set, zip(*asked_for(caption)[0], strict=True))
    return row["colour"] and row["shape"] and min(len(colours), len(forms)) > 1
