"""The feature nets in which Fréchet distances are measured: small classifiers of real images.

Published FIDs use the Inception network, trained on ImageNet, to which 8x8 digits would be foreign.
So each data set has its own small net, trained on the training half alone, shipped in
``dit_edu/zoo`` and known by its hash. A distance compares only with others in the same net.

The features end in tanh and the labels are smoothed: with unbounded, over-confident features a few
outliers carry the covariance, and the distance varies more from one draw of samples to the next.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from dit_edu._checks import check_choice
from dit_edu.lab.data import batch_indices, dataset
from dit_edu.lab.files import (
    provenance,
    read_json,
    read_safetensors,
    sha256,
    write_json,
    write_safetensors,
)

ZOO = Path(__file__).resolve().parents[1] / "zoo"
KIND = "features"


@dataclass(frozen=True)
class FeatureRecipe:
    """How a feature net is built and trained.

    Attributes:
        data: Name of the data set, of which the training half is used.
        widths: Channels of the convolutions; each but the first halves the image.
        features: Width of the penultimate layer, in which distances are measured.
        dropout: Share of the features left out in training.
        label_smoothing: Share of each label spread over all classes.
        shift: Images are shifted by up to so many pixels each way.
        steps: Number of batches.
        batch_size: Images in each.
        lr: Peak learning rate of AdamW, from which a cosine falls to 0.
        weight_decay: Of AdamW.
        seed: Of initialisation, batches, shifts and dropout.
    """

    data: str
    widths: tuple[int, ...] = (32, 48, 64)
    features: int = 64
    dropout: float = 0.5
    label_smoothing: float = 0.1
    shift: int = 1
    steps: int = 1000
    batch_size: int = 128
    lr: float = 2e-3
    weight_decay: float = 1e-2
    seed: int = 0


RECIPES = {
    "digits-features": FeatureRecipe("digits"),
    "shapes-features": FeatureRecipe(
        "shapes", widths=(8, 16, 32, 64), dropout=0.2, shift=0, steps=700, batch_size=64, lr=4e-3
    ),
    "small-shapes-features": FeatureRecipe(
        "small-shapes", widths=(16, 32, 64), dropout=0.2, shift=0, steps=700, batch_size=64, lr=4e-3
    ),
    "moving-digits-features": FeatureRecipe(  # of a frame and the next: what moves, and where to
        "moving-pairs",
        widths=(8, 16, 32),
        features=32,
        dropout=0.1,
        shift=0,
        steps=800,
        batch_size=64,
        lr=4e-3,
    ),
}


class FeatureNet(nn.Module):
    """Convolutions, then two linear layers; its output is what lies between the two.

    Args:
        channels: Channels of the images.
        size: Their height and width, divisible by ``2 ** (len(widths) - 1)``.
        num_classes: Number of classes.
        widths: See :class:`FeatureRecipe`.
        features: See :class:`FeatureRecipe`.
        dropout: See :class:`FeatureRecipe`.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        num_classes: int,
        widths: tuple[int, ...],
        features: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1), nn.SiLU()]
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.SiLU(), nn.AvgPool2d(2)]
        side = size >> (len(widths) - 1)
        layers += [nn.Flatten(), nn.Linear(widths[-1] * side**2, features), nn.Tanh()]
        self.body = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(features, num_classes)
        self.num_features = features  # torchmetrics asks for it by this name

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features (n, features) in [-1, 1] of images (n, C, H, W) in [-1, 1]."""
        return self.body(images)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores (n, num_classes)."""
        return self.head(self.dropout(self.body(images)))


def train_features(name: str = "digits-features", folder: Path = ZOO) -> dict:
    """Train the feature net ``name`` and write weights and card: under a minute on one core.

    Args:
        name: A key of :data:`RECIPES`.
        folder: Where ``NAME.safetensors`` and ``NAME.json`` go.

    Returns:
        The card, see :mod:`dit_edu.lab.zoo`.

    Raises:
        ValueError: ``name`` is unknown.
        OSError: The folder cannot be written.
    """
    recipe = RECIPES[check_choice("name", name, RECIPES)]
    info = dataset(recipe.data)
    images, labels = info.load("train")
    config = {
        "channels": info.channels,
        "size": info.size,
        "num_classes": info.num_classes,
        "widths": list(recipe.widths),
        "features": recipe.features,
    }
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(recipe.seed)
        net = FeatureNet(**config, dropout=recipe.dropout)
        optimizer = torch.optim.AdamW(net.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
        for step in range(recipe.steps):
            batch = batch_indices(len(images), recipe.batch_size, recipe.seed, step)
            logits = net.logits(_shifted(images[batch], recipe.shift))
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - start

    net.eval()
    heldout, heldout_labels = info.load("heldout")
    with torch.no_grad():
        right = {
            "accuracy_train": (net.logits(images).argmax(1) == labels).float().mean().item(),
            "accuracy": (net.logits(heldout).argmax(1) == heldout_labels).float().mean().item(),
        }
    weights = Path(folder) / f"{name}.safetensors"
    write_safetensors(weights, net.state_dict(), {"kind": KIND, "name": name})
    card = {
        "name": name,
        "kind": KIND,
        "config": config,
        "recipe": asdict(recipe),
        "seed": recipe.seed,
        "steps": recipe.steps,
        "device": "cpu",
        "seconds": round(seconds, 1),
        **provenance(),
        "sha256": sha256(weights),
        "metrics": right,
    }
    write_json(Path(folder) / f"{name}.json", card)
    return card


@contextmanager
def _one_thread() -> Iterator[None]:
    """The same sums in the same order whatever the number of cores; as fast for a net so small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _shifted(images: torch.Tensor, shift: int) -> torch.Tensor:
    """Each image moved by its own whole number of pixels, up to ``shift`` each way."""
    n, _, height, width = images.shape
    padded = F.pad(images, [shift] * 4, value=-1.0)  # (n, C, H + 2 s, W + 2 s)
    offset = torch.randint(0, 2 * shift + 1, (2, n, 1))
    rows = (offset[0] + torch.arange(height))[:, :, None]  # (n, H, 1)
    columns = (offset[1] + torch.arange(width))[:, None, :]  # (n, 1, W)
    which = torch.arange(n)[:, None, None]
    return padded.movedim(1, -1)[which, rows, columns].movedim(-1, 1)  # (n, C, H, W)


@cache
def load_features(name: str = "digits-features", folder: Path = ZOO) -> FeatureNet:
    """The shipped feature net ``name``, frozen, in evaluation mode, on the CPU.

    Raises:
        ValueError: ``name`` is unknown, or the weights are truncated, foreign, or not those whose
            hash the card states.
        FileNotFoundError: A file is missing.
    """
    check_choice("name", name, RECIPES)
    card = read_json(Path(folder) / f"{name}.json")
    if card.get("kind") != KIND:
        raise ValueError(f"{name}.json is the card of a {card.get('kind')!r}, not of {KIND!r}.")
    weights, _ = read_safetensors(Path(folder) / f"{name}.safetensors", card["sha256"])
    net = FeatureNet(**card["config"])
    net.load_state_dict(weights)
    return net.requires_grad_(False).eval()


if __name__ == "__main__":
    print(train_features()["metrics"])
