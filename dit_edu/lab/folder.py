"""A folder of one's own: images, or latents in ``.npy`` files, as training data.

Either the files lie in the folder itself, which is one class, or in a folder for each class, as
torchvision's ImageFolder has it: ``photos/china/1.jpg``, ``photos/flower/1.jpg``. Classes and files
are taken in alphabetical order, so that labels are the same on every machine. Files and folders
whose names begin with a dot are left out, and so is what has another extension.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dit_edu._checks import check_positive_int

IMAGES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
LATENTS = frozenset({".npy"})
#: Pillow's name for what a model with so many channels sees.
MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Folder:
    """What lies in a folder.

    Attributes:
        path: of the folder.
        files: of its examples, class by class.
        labels: one for each file, from 0.
        class_names: the names of the folders, or that of the one folder.
        latents: whether the files are latents and no images.
    """

    path: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    latents: bool

    def __len__(self) -> int:
        return len(self.files)


def scan(path: str | Path) -> Folder:
    """Find the examples in a folder; none is opened yet.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        ValueError: it holds no examples, or a class without any, or files beside class folders, or
            images and latents; the message names what is in the way.
    """
    root = Path(path)
    if not root.is_dir():
        kind = NotADirectoryError if root.exists() else FileNotFoundError
        raise kind(2, "no folder", str(root))
    classes = sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
    loose = _examples(root, root.iterdir())
    if classes and loose:
        raise ValueError(
            f"{loose[0]} lies beside the folder {classes[0].name}; allowed: either files, "
            "or a folder for each class."
        )
    found = {p.name: _examples(p, p.rglob("*")) for p in classes} or {root.resolve().name: loose}
    for name, files in found.items():
        if not files:
            where = root / name if classes else root
            raise ValueError(
                f"{where} holds no examples; allowed: {', '.join(sorted(IMAGES | LATENTS))}."
            )
    files = tuple(file for group in found.values() for file in group)
    labels = tuple(label for label, group in enumerate(found.values()) for _ in group)
    latents = [file.suffix.lower() in LATENTS for file in files]
    if any(latents) and not all(latents):
        one, other = files[latents.index(True)], files[latents.index(False)]
        raise ValueError(f"{root} holds images and latents: {other} and {one}; allowed: one kind.")
    return Folder(root, files, labels, tuple(found), latents[0])


def _examples(base: Path, paths) -> list[Path]:
    """The examples among ``paths``, none of them hidden below ``base``, in order."""
    parts = {path: path.relative_to(base).parts for path in paths}
    return sorted(
        path
        for path, names in parts.items()
        if path.suffix.lower() in IMAGES | LATENTS
        and not any(name[0] == "." for name in names)
        and path.is_file()
    )


def read_image(path: str | Path, size: int, channels: int = 3) -> Tensor:
    """An image as a model sees it: upright, its middle cut out as a square, resized.

    A camera may store a picture lying on its side and say so in its EXIF data; that is heeded. Of
    an animation the first picture is taken.

    Args:
        path: of a file that Pillow can read.
        size: H = W of the result in pixels.
        channels: 3 for RGB, 1 for grey.

    Returns:
        (C, size, size) float32 in [-1, 1].

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is broken, is no image, or has more than 8 bits a channel; the message names
            it.
    """
    check_positive_int("size", size)
    if channels not in MODES:
        raise ValueError(f"channels={channels!r}; allowed: 1 (grey), 3 (RGB).")
    with open(path, "rb") as file:
        try:
            with Image.open(file) as picture:
                if picture.mode[0] in "IF":  # clipped at 255 if it were converted
                    raise ValueError(f"mode {picture.mode!r}; allowed: 8 bits a channel")
                picture = ImageOps.exif_transpose(picture).convert(MODES[channels])
        except (
            *(OSError, SyntaxError, ValueError, EOFError, struct.error),
            *(UnidentifiedImageError, Image.DecompressionBombError),
        ) as error:
            raise ValueError(f"{path} is no image that can be read: {error}") from error
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    square = (left, top, left + side, top + side)
    picture = picture.resize((size, size), Image.Resampling.BICUBIC, box=square)
    pixels = np.asarray(picture, dtype=np.float32).reshape(size, size, channels) / 127.5 - 1
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # (H, W, C) -> (C, H, W)


def read_latents(path: str | Path, shape: tuple[int, ...]) -> Tensor:
    """Latents as some other program has saved them with ``numpy.save``, one example a file.

    Args:
        path: of the file.
        shape: (C, h, w), what the model takes.

    Returns:
        (C, h, w) float32.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no array of numpy, or not a finite one of floating point and that shape;
            the message names it.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no array of numbers: {error}") from error
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
        kind = getattr(array, "dtype", "an archive")
        raise ValueError(f"{path} holds {kind}; allowed: floating point.")
    if array.shape != tuple(shape):
        raise ValueError(f"{path} has shape {array.shape}; allowed: {tuple(shape)}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{path} holds NaN or infinity; allowed: finite numbers.")
    return torch.from_numpy(array.astype(np.float32))
