"""The data of the book, none of which is downloaded: real digits and generated scenes.

Images are float32 in [-1, 1], shaped (n, C, H, W); labels are int64. Every data set comes in two
halves: models learn from ``"train"``, and only final figures look at ``"heldout"``. Settings
(guidance, steps, learning rate) are chosen on :func:`folds` of the training half.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
import torch

from dit_edu._checks import check_choice, check_positive_int
from dit_edu.lab.moving import DIRECTIONS, load_pairs, load_videos, read_videos
from dit_edu.lab.scenes import CLASS_NAMES, Scenes, recognise, shapes

__all__ = [
    "DATASETS",
    "Dataset",
    "Scenes",
    "batch_indices",
    "dataset",
    "digits",
    "folds",
    "shapes",
    "to_unit",
]

OWN = "own-"  # begins the name of data from a folder, see dit_edu.lab.own
SPLIT_SEED = 20230  # fixes the halves of the digits for good
Labelled = tuple[torch.Tensor, torch.Tensor]  # images (n, C, H, W) float32, labels (n,) int64


@dataclass(frozen=True)
class Dataset:
    """What a training recipe needs to know about a data set.

    Attributes:
        name: Its name in :data:`DATASETS`.
        load: ``load(split, **options)`` gives images (n, C, H, W) and labels (n,).
        class_names: One name for each label.
        channels: C.
        size: H = W, in pixels.
        judge: Tells the classes (n,) of images (n, C, H, W), -1 for none, where a rule can; None
            where :mod:`dit_edu.lab.metrics` has to learn a judge from the training half.
    """

    name: str
    load: Callable[..., Labelled]
    class_names: tuple[str, ...]
    channels: int
    size: int
    judge: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


def digits(split: str = "train") -> Labelled:
    """Scikit-learn's 1,797 handwritten digits (Alpaydin & Kaynak 1998), 8x8 pixels of 17 levels.

    The halves have 898 and 899 images and, within one, as many of each class; both hold digits of
    every writer.

    Args:
        split: ``"train"``, ``"heldout"`` or ``"all"``.

    Returns:
        Images (n, 1, 8, 8) float32 in [-1, 1], where x = pixel / 8 - 1, and labels (n,) int64.

    Raises:
        ValueError: ``split`` is unknown.
    """
    check_choice("split", split, ("train", "heldout", "all"))
    images, labels, train = _all_digits()
    chosen = {"train": train, "heldout": ~train, "all": torch.ones_like(train)}[split]
    return images[chosen], labels[chosen]  # indexing copies: the caller may change what it gets


@cache
def _all_digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All images and labels, and which of them belong to the training half."""
    from sklearn.datasets import load_digits  # half a second of import, only where it is needed

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels.astype(np.float32).reshape(-1, 1, 8, 8) / 8 - 1)
    train = np.zeros(len(labels), bool)
    rng = np.random.default_rng(SPLIT_SEED)
    spare = 0  # classes of odd size give their spare image to the halves in turn, held-out first
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        half = len(members) // 2 + (len(members) % 2 and spare % 2)
        spare += len(members) % 2
        train[members[:half]] = True
    return images, torch.from_numpy(labels.astype(np.int64)), torch.from_numpy(train)


def _load_shapes(split: str = "train", **options: Any) -> Labelled:
    """Scenes with fixed seeds: 8,000 to train on, 2,000 held out, ``"all"`` both.

    Unless ``options`` say otherwise, one plain object lies near the middle.
    """
    check_choice("split", split, ("train", "heldout", "all"))
    parts = {"train": [(8000, 0)], "heldout": [(2000, 1)], "all": [(8000, 0), (2000, 1)]}[split]
    scenes = [shapes(n, seed=seed, **{"level": "jittered", **options}) for n, seed in parts]
    return torch.cat([s.images for s in scenes]), torch.cat([s.label for s in scenes])


DATASETS = {
    "digits": Dataset("digits", digits, tuple("0123456789"), channels=1, size=8),
    "shapes": Dataset("shapes", _load_shapes, CLASS_NAMES, channels=3, size=32, judge=recognise),
    "small-shapes": Dataset(
        "small-shapes",
        partial(_load_shapes, size=16),
        CLASS_NAMES,
        channels=3,
        size=16,
        judge=recognise,
    ),
    "moving-digits": Dataset(
        "moving-digits",
        load_videos,
        tuple("0123456789"),
        channels=1,
        size=16,
        judge=read_videos,
    ),
    "moving-pairs": Dataset(
        "moving-pairs",
        load_pairs,
        tuple(f"{digit} {direction}" for digit in range(10) for direction in DIRECTIONS),
        channels=2,
        size=16,
    ),
}


def dataset(name: str) -> Dataset:
    """The data set called ``name``.

    Raises:
        ValueError: There is none (the message names the nearest), or it is one's own.
    """
    if name.startswith(OWN):
        raise ValueError(f"dataset={name!r} lies in a folder of one's own; hand it in as data=.")
    return DATASETS[check_choice("dataset", name, DATASETS)]


def folds(
    labels: torch.Tensor, k: int = 2, seed: int = 0
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Split indices into ``k`` parts, each class spread evenly, for choosing settings.

    Give it the labels of the training half: the held-out half stays untouched until the end. With
    two folds both parts are equally large, as :mod:`dit_edu.lab.metrics` likes them.

    Args:
        labels: (n,) int64.
        k: Number of folds, at least 2.
        seed: Which split.

    Returns:
        k pairs of index tensors (the other folds to fit on, this fold to judge by).

    Raises:
        ValueError: ``k`` is less than 2 or more than the smallest class has members.
    """
    from sklearn.model_selection import StratifiedKFold

    smallest = int(torch.bincount(labels)[labels.unique()].min())
    if check_positive_int("k", k) < 2 or k > smallest:
        raise ValueError(f"k={k} must be in [2, {smallest}], the size of the smallest class.")
    splitter = StratifiedKFold(k, shuffle=True, random_state=seed)
    parts = splitter.split(np.zeros(len(labels)), labels.numpy())
    return [(torch.from_numpy(fit), torch.from_numpy(judge)) for fit, judge in parts]


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> torch.Tensor:
    """The indices of training batch number ``step``: a pure function of the arguments.

    The batches cut an endless stream of epochs, each a new shuffle of ``range(n)``, into pieces; so
    a run that resumes at ``step`` sees what it would have seen, with no state to save.

    Args:
        n: Size of the data set.
        batch_size: Length of the result; may exceed ``n``.
        seed: Which stream.
        step: Number of the batch, from 0.

    Returns:
        (batch_size,) int64.

    Raises:
        TypeError: ``n`` or ``batch_size`` is not an integer.
        ValueError: ``n`` or ``batch_size`` is less than 1, or ``step`` is negative.
    """
    check_positive_int("n", n)
    check_positive_int("batch_size", batch_size)
    if step < 0:
        raise ValueError(f"step={step} must be at least 0.")
    place = np.arange(step * batch_size, (step + 1) * batch_size)  # in the endless stream
    epochs = range(place[0] // n, place[-1] // n + 1)
    stream = np.concatenate([_epoch(n, seed, epoch) for epoch in epochs])
    return torch.from_numpy(stream[place - epochs[0] * n])


@lru_cache(maxsize=4)
def _epoch(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """From [-1, 1] to [0, 1], clipped: for files and for eyes."""
    return ((images + 1) / 2).clamp(0, 1)
