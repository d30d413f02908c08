"""Generated RGB scenes of which everything is known: shape, colour, caption, place and complexity.

A scene is one to three objects on grey. The first is the *main* object: the largest, in front, and
named first in the caption; the label is its shape and colour. Three knobs make scenes harder one at
a time: ``level`` (where objects may lie), ``objects`` (how many), ``texture`` (how finely striped).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from dit_edu._checks import check_choice, check_positive_int

SHAPES = ("circle", "square", "triangle")
COLOURS = {  # RGB in [0, 1]
    "red": (0.90, 0.20, 0.20),
    "green": (0.20, 0.75, 0.30),
    "blue": (0.25, 0.40, 0.95),
    "yellow": (0.95, 0.85, 0.20),
}
CLASS_NAMES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
LEVELS = ("centred", "jittered", "free")
MAX_OBJECTS = 3

# Places are in units of half the image: x, y in [-1, 1], y down.
_SLOTS = {  # where objects lie at the level "centred", by their number
    1: ((0.0, 0.0),),
    2: ((-0.48, 0.0), (0.48, 0.0)),
    3: ((-0.46, -0.42), (0.46, -0.42), (0.0, 0.46)),
}
_RADIUS = {1: 0.52, 2: 0.38, 3: 0.34}  # of the main object, by the number of objects
_SMALLER = 0.7  # radius of the others, as a share of the main one's
_SPREAD = {"centred": (0.85, 1.1), "jittered": (0.85, 1.1), "free": (0.75, 1.05)}  # factor on radii
_JITTER = 0.12
_TRIES = 16  # candidate layouts at the level "free", of which the first without overlap is taken
_DRAWS = 32 + len(CLASS_NAMES) + 2 * MAX_OBJECTS * _TRIES  # uniform numbers a scene consumes
_SUPERSAMPLE = 4
_CONTRAST = 0.6  # of the stripes
_FINEST = 0.25  # cycles per pixel at texture = 1: a period of 4 pixels
# Area of a shape of radius 1, and how far its centre of mass lies below the centre of its box.
_MASS = {
    "circle": (math.pi, 0.0),
    "square": (1.7**2, 0.0),
    "triangle": (math.sqrt(3), math.sqrt(3) / 6),
}
_OVERLAP = 0.8  # of a mask and an ideal shape, over their union, for the shape to be recognised
_COLOURED = 0.2  # the least chroma (largest minus smallest of R, G, B) of an object's core


@dataclass(frozen=True)
class Scenes:
    """``n`` scenes and all that is known about them.

    Attributes:
        images: (n, 3, H, W) float32 in [-1, 1].
        label: (n,) int64, the main object's class, an index into :data:`CLASS_NAMES`.
        shape: (n,) int64, the main object's shape, an index into :data:`SHAPES`.
        colour: (n,) int64, the main object's colour, an index into the keys of :data:`COLOURS`.
        captions: n sentences such as "a red circle left of a blue square".
        positions: (n, 3, 2) float32, the objects' centres (x, y) in pixels from the top left,
            main object first, NaN where there is no object.
        count: (n,) int64, the number of objects.
        complexity: (n,) float32, the sum over objects of 1 + texture: 1 for one plain object, 6 for
            three with the finest stripes.
    """

    images: torch.Tensor
    label: torch.Tensor
    shape: torch.Tensor
    colour: torch.Tensor
    captions: tuple[str, ...]
    positions: torch.Tensor
    count: torch.Tensor
    complexity: torch.Tensor


def shapes(
    n: int,
    *,
    size: int = 32,
    level: str = "centred",
    objects: int | tuple[int, int] = 1,
    texture: float | tuple[float, float] = 0.0,
    seed: int = 0,
) -> Scenes:
    """Draw ``n`` scenes. Scene i depends on the arguments and on i, not on ``n``.

    The same ``seed`` gives the same classes at every level, texture and size.

    Args:
        n: Number of scenes.
        size: Height and width in pixels, at least 8.
        level: ``"centred"`` (fixed places), ``"jittered"`` (near them) or ``"free"`` (anywhere in
            the image, without overlap, and smaller). Radii and shades always vary.
        objects: Their number, 1 to 3, or an inclusive range from which each scene draws its own.
        texture: 0 for plain objects; above it, stripes of ``0.25 * texture`` cycles per pixel at a
            random angle. A number in [0, 1], or a range from which each scene draws its own.
        seed: Any non-negative integer.

    Raises:
        TypeError: ``n`` or ``size`` is not an integer.
        ValueError: An argument is outside what is said above.
    """
    check_positive_int("n", n)
    check_choice("level", level, LEVELS)
    if check_positive_int("size", size) < 8:
        raise ValueError(f"size={size} must be at least 8 pixels.")
    low, high = _range("objects", objects, 1, MAX_OBJECTS)
    smooth, fine = _range("texture", texture, 0.0, 1.0)

    # Row by row from one stream: row i is the same whatever n.
    draws = np.random.default_rng(seed).random((n, _DRAWS))
    single, ranks, candidates = np.split(draws, [32, 32 + len(CLASS_NAMES)], axis=1)
    count = low + np.floor(single[:, 0] * (high - low + 1)).astype(np.int64)  # (n,)
    stripes = smooth + single[:, 1] * (fine - smooth)  # (n,) texture of each scene
    classes = np.argsort(ranks, axis=1)[:, :MAX_OBJECTS]  # (n, 3) classes, all different
    places, radii = _layout(level, count, single, candidates)  # (n, 3, 2), (n, 3)

    images = np.empty((n, 3, size, size), np.float32)
    for start in range(0, n, 256):  # in chunks: the supersampled canvas is 16 times the image
        part = slice(start, start + 256)
        images[part] = _render(
            size, classes[part], places[part], radii[part], count[part], stripes[part], single[part]
        )
    present = np.arange(MAX_OBJECTS) < count[:, None]  # (n, 3)
    pixels = np.where(present[..., None], (places + 1) / 2 * size, np.nan).astype(np.float32)
    label = classes[:, 0]
    return Scenes(
        images=torch.from_numpy(images),
        label=torch.from_numpy(label),
        shape=torch.from_numpy(label // len(COLOURS)),
        colour=torch.from_numpy(label % len(COLOURS)),
        captions=tuple(map(caption, classes, places, count)),
        positions=torch.from_numpy(pixels),
        count=torch.from_numpy(count),
        complexity=torch.from_numpy((count * (1 + stripes)).astype(np.float32)),
    )


def caption(classes: np.ndarray, places: np.ndarray, count: int) -> str:
    """Say what a scene shows, main object first.

    The grammar: ``a C S [R a C S [and R a C S]]`` with C a colour, S a shape and R one of "left
    of", "right of", "above", "below": where the main object lies as seen from the other one, along
    the axis on which they are further apart.
    """
    sentence = f"a {CLASS_NAMES[classes[0]]}"
    for k in range(1, count):
        dx, dy = places[0] - places[k]
        if abs(dx) >= abs(dy):
            relation = "left of" if dx < 0 else "right of"
        else:
            relation = "above" if dy < 0 else "below"
        sentence += f"{' and' if k > 1 else ''} {relation} a {CLASS_NAMES[classes[k]]}"
    return sentence


def _range(name: str, value: object, low: float, high: float) -> tuple:
    """``value`` as an increasing pair of numbers in [low, high]; a single number counts twice."""
    pair = value if isinstance(value, tuple) else (value, value)
    kind = int if isinstance(low, int) else (int, float)
    valid = len(pair) == 2 and all(isinstance(v, kind) and not isinstance(v, bool) for v in pair)
    if not valid or not low <= pair[0] <= pair[1] <= high:
        raise ValueError(
            f"{name}={value!r} must be {'an int' if kind is int else 'a number'} in "
            f"[{low}, {high}] or an increasing pair of them."
        )
    return pair


def _layout(
    level: str, count: np.ndarray, single: np.ndarray, candidates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Centres (n, 3, 2) in [-1, 1] and radii (n, 3) of all objects, present or not."""
    n = len(count)
    least, most = _SPREAD[level]
    smaller = np.array([1.0, _SMALLER, _SMALLER])
    radii = np.array([0.0, *_RADIUS.values()])[count, None] * smaller  # (n,) -> (n, 3)
    radii = radii * (least + single[:, 2:5] * (most - least))
    room = 1 - radii[:, :, None]  # (n, 3, 1) the furthest a centre may lie from the middle

    if level == "free":
        present = np.arange(MAX_OBJECTS) < count[:, None]  # (n, 3)
        tries = candidates.reshape(n, _TRIES, MAX_OBJECTS, 2) * 2 - 1  # (n, 16, 3, 2)
        tries = tries * room[:, None]
        gap = np.zeros((n, _TRIES))
        for a, b in ((0, 1), (0, 2), (1, 2)):
            apart = np.abs(tries[:, :, a] - tries[:, :, b]).max(-1)  # (n, 16) boxes, not circles
            free = apart - (radii[:, a] + radii[:, b])[:, None]
            gap = np.where((present[:, a] & present[:, b])[:, None], np.minimum(gap, free), gap)
        first = np.argmax(gap, axis=1)  # the first without overlap; where none is, the least
        return tries[np.arange(n), first], radii  # (n, 3, 2)

    slots = np.zeros((MAX_OBJECTS + 1, MAX_OBJECTS, 2))
    for k, where in _SLOTS.items():
        slots[k, :k] = where
    # Which slot the main object gets: turn the list of slots by a random number of places.
    turn = np.floor(single[:, 5] * count).astype(np.int64)  # (n,)
    order = (np.arange(MAX_OBJECTS) + turn[:, None]) % count[:, None]  # (n, 3)
    places = slots[count[:, None], order]  # (n, 3, 2)
    if level == "jittered":
        places = places + _JITTER * (single[:, 6:12].reshape(n, MAX_OBJECTS, 2) * 2 - 1)
    return np.clip(places, -room, room), radii


def _inside(shape: str, dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Which points (m, S, S) lie in a shape; dx is (m, 1, S), dy (m, S, 1), radius (m, 1, 1)."""
    if shape == "circle":
        return dx**2 + dy**2 <= radius**2
    if shape == "square":
        return (np.abs(dx) <= 0.85 * radius) & (np.abs(dy) <= 0.85 * radius)
    height = math.sqrt(3) * radius  # equilateral, side 2 r, upright, its box centred
    return (np.abs(dx) * math.sqrt(3) <= dy + height / 2) & (dy <= height / 2)


def _render(
    size: int,
    classes: np.ndarray,
    places: np.ndarray,
    radii: np.ndarray,
    count: np.ndarray,
    stripes: np.ndarray,
    single: np.ndarray,
) -> np.ndarray:
    """Images (m, 3, size, size) in [-1, 1], averaged over 4 x 4 points in each pixel."""
    m, fine = len(count), size * _SUPERSAMPLE
    axis = ((np.arange(fine) + 0.5) / fine * 2 - 1).astype(np.float32)  # (S,) the points
    palette = np.array(list(COLOURS.values()))
    empty = np.ones((m, fine, fine), bool)  # points that no object has covered yet
    images = np.zeros((m, 3, size, size))
    for k in range(MAX_OBJECTS):  # front to back: the main object first
        light = np.zeros((m, fine, fine), np.float32)  # how bright object k is seen at each point
        for index, shape in enumerate(SHAPES):
            rows = np.flatnonzero((k < count) & (classes[:, k] // len(COLOURS) == index))
            if not len(rows):
                continue
            dx = axis[None, None, :] - places[rows, k, 0, None, None].astype(np.float32)
            dy = axis[None, :, None] - places[rows, k, 1, None, None].astype(np.float32)
            mask = _inside(shape, dx, dy, radii[rows, k, None, None].astype(np.float32))
            seen = mask & empty[rows]
            empty[rows] &= ~mask
            light[rows] = seen
            if stripes[rows].any():
                light[rows] *= _stripes(
                    dx, dy, size, stripes[rows], single[rows][:, [16 + k, 19 + k]]
                )
        shade = 0.75 + 0.25 * single[:, 13 + k]
        colour = palette[classes[:, k] % len(COLOURS)] * shade[:, None]  # (m, 3)
        images += colour[:, :, None, None] * _pool(light)[:, None]
    grey = 0.05 + 0.2 * single[:, 12]
    images += (grey[:, None, None] * _pool(empty.astype(np.float32)))[:, None]
    return images * 2 - 1


def _stripes(
    dx: np.ndarray, dy: np.ndarray, size: int, texture: np.ndarray, draws: np.ndarray
) -> np.ndarray:
    """Brightness (m, S, S) in [1 - contrast, 1]; 1 where texture is 0."""
    angle, phase = 2 * np.pi * draws[:, 0], 2 * np.pi * draws[:, 1]
    wave = np.pi * _FINEST * size * texture  # radians per half image
    along_x = ((wave * np.cos(angle))[:, None, None] * dx).astype(np.float32)  # (m, 1, S)
    along_y = ((wave * np.sin(angle))[:, None, None] * dy).astype(np.float32)  # (m, S, 1)
    contrast = (_CONTRAST * (texture > 0)).astype(np.float32)[:, None, None]
    # 1 - c (1 + sin(w . r + phase)) / 2
    return (
        1 - contrast * (1 + np.sin(along_x + along_y + phase.astype(np.float32)[:, None, None])) / 2
    )


def _pool(points: np.ndarray) -> np.ndarray:
    """Average over the points of each pixel: (m, S, S) -> (m, S/4, S/4)."""
    m, fine, _ = points.shape
    rows = points.reshape(m, fine // _SUPERSAMPLE, _SUPERSAMPLE, fine).mean(2)
    return rows.reshape(m, fine // _SUPERSAMPLE, -1, _SUPERSAMPLE).mean(3)


def recognise(images: torch.Tensor) -> torch.Tensor:
    """The class of the one plain object in each scene, by its geometry; nothing here is learnt.

    Objects have a colour and the background has none. The mask of what is coloured is compared
    with an ideal circle, square and triangle of the same area and centre. The best overlap is the
    shape; if even that is less than ``_OVERLAP`` of the union, or nothing is coloured, it is none.

    Args:
        images: (n, 3, H, H) in [-1, 1], scenes with one object without stripes.

    Returns:
        (n,) int64, indices into :data:`CLASS_NAMES`; -1 where no shape is seen.
    """
    return torch.cat([_recognise(part) for part in images.split(256)])


def _recognise(images: torch.Tensor) -> torch.Tensor:
    rgb = (images.double().numpy() + 1) / 2  # (m, 3, S, S)
    m, _, size, _ = rgb.shape
    chroma = rgb.max(1) - rgb.min(1)  # (m, S, S)
    high = np.sort(chroma.reshape(m, -1), axis=1)[:, -8, None, None]  # (m, 1, 1): not a speck's
    core = chroma >= high / 2
    level = (chroma * core).sum((1, 2)) / core.sum((1, 2))  # (m,) mean chroma of the object
    share = chroma / np.maximum(level, 1e-9)[:, None, None]
    mask = np.clip((share - 0.25) / 0.5, 0, 1)  # (m, S, S) how much of a pixel is covered

    area = mask.sum((1, 2)) + 1e-9  # (m,) in pixels
    colour = (rgb * mask[:, None]).sum((2, 3)) / area[:, None]  # (m, 3) mean over the object
    palette = np.array(list(COLOURS.values()))
    unit = palette / np.linalg.norm(palette, axis=1, keepdims=True)  # (4, 3): shades are alike
    best_colour = (colour @ unit.T).argmax(1)

    pixels = (np.arange(size) + 0.5) / size * 2 - 1  # (S,) in units of half the image
    x = (mask.sum(1) * pixels).sum(1) / area  # (m,) the centre of mass
    y = (mask.sum(2) * pixels).sum(1) / area
    fine = size * _SUPERSAMPLE
    points = (np.arange(fine) + 0.5) / fine * 2 - 1  # (S',)
    dx, dy = points - x[:, None, None], points[:, None] - y[:, None, None]  # (m, 1, S'), (m, S', 1)
    area = area * (2 / size) ** 2
    overlap = np.empty((m, len(SHAPES)))
    for index, (shape, (of_area, lower)) in enumerate(_MASS.items()):
        radius = np.sqrt(area / of_area)[:, None, None]  # (m, 1, 1)
        ideal = _pool(_inside(shape, dx, dy + lower * radius, radius).astype(np.float64))
        union = np.maximum(mask, ideal).sum((1, 2)) + 1e-9
        overlap[:, index] = np.minimum(mask, ideal).sum((1, 2)) / union
    label = overlap.argmax(1) * len(COLOURS) + best_colour
    seen = (overlap.max(1) >= _OVERLAP) & (level >= _COLOURED)
    return torch.from_numpy(np.where(seen, label, -1))
