"""How good samples are, and how good they could be.

Are they of the class asked for (accuracy), distributed like real images (Fréchet distance), each
like something real, and everything real among them (precision and recall), and not copied from the
training half (closer)? No figure says much alone, so :func:`references` gives the same ones for
real images (the *limit*) and for generators that understand nothing.

Every figure but the accuracy depends on the number of images it was measured with. So samples are
compared at n = the size of the reference half, and read as ratios to a limit taken at the same n.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from dit_edu.lab.baselines import Labelled, class_gaussian, memorise
from dit_edu.lab.data import dataset
from dit_edu.lab.features import load_features
from dit_edu.lab.moving import frame_pairs
from dit_edu.latents import VAE

if TYPE_CHECKING:
    from sklearn.neighbors import NearestNeighbors

NEIGHBOURS = 3  # k of precision and recall
NOISE = 0.1  # on the memoriser's images, in units of the range [-1, 1]


def evaluate(images: torch.Tensor, labels: torch.Tensor, data: str = "digits") -> dict[str, Any]:
    """Measure samples against the held-out half of a data set, with its shipped feature net.

    Args:
        images: (n, C, H, W) float in [-1, 1], n = the size of the held-out half.
        labels: (n,) int64, the classes asked for: best those of the held-out half, so that classes
            are as frequent as in what the samples are compared with.
        data: Name of the data set.

    Returns:
        See :func:`evaluate_on`.

    Raises:
        TypeError, ValueError: See :func:`evaluate_on`; ``data`` is unknown.
    """
    train, heldout = dataset(data).load("train"), dataset(data).load("heldout")
    features, judge = load_features(f"{data}-features"), dataset(data).judge
    return evaluate_on(images, labels, train, heldout, features, judge=judge)


def evaluate_on(
    samples: torch.Tensor,
    labels: torch.Tensor,
    train: Labelled,
    reference: Labelled,
    features: nn.Module,
    seed: int = 0,
    judge: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Measure samples of a model that saw ``train`` against ``reference``, which it did not see.

    To choose settings, give two folds of the training half; the held-out half is for final figures.

    Args:
        samples: (n, C, H, W) float in [-1, 1].
        labels: (n,) int64, the classes asked for.
        train: Images and labels that the model, and the judge of accuracy, learn from.
        reference: n images and labels.
        features: The net in which the Fréchet distance is measured.
        seed: Of the subset drawn from the larger half where halves must be equal.
        judge: Tells the classes of images, for the accuracy; None for one that learns from
            ``train``, see :func:`accuracy`.

    Returns:
        ``n``; ``accuracy``, ``precision``, ``recall`` and ``closer`` in [0, 1]; ``fd``, the Fréchet
        distance to the reference; ``fd_ratio``, that over the distance of ``train`` to it.

    Raises:
        TypeError: ``samples`` is not floating point or ``labels`` not int64.
        ValueError: n is not the size of the reference; a shape differs; a value is not finite or
            outside [-1, 1]; a label is none of the classes of ``train``.
    """
    _check(samples, labels, train, reference)
    samples, labels, real = samples.detach().float().cpu(), labels.cpu(), reference[0]
    fd = frechet_distance(samples, real, features)
    precision, recall = precision_recall(samples, real)
    return {
        "n": len(samples),
        "accuracy": accuracy(samples, labels, train, judge),
        "fd": fd,
        "fd_ratio": fd / frechet_distance(_alike(train, reference[1], seed), real, features),
        "precision": precision,
        "recall": recall,
        "closer": closer(samples, train[0], real, seed),
    }


def references(
    data: str = "digits", seed: int = 0, vae: VAE | None = None
) -> dict[str, dict[str, Any]]:
    """What to read a model's figures against, in the form of :func:`evaluate_on`.

    Args:
        data: Name of the data set.
        seed: Of the baselines' draws.
        vae: The autoencoder on whose latents the model works.

    Returns:
        ``limit`` is the training half itself against the held-out half (its accuracy is that of the
        judge on the held-out half; its ``closer`` means nothing and is None). ``gaussian``,
        ``memoriser``, ``memoriser+noise``: see :mod:`dit_edu.lab.baselines`. With ``vae`` also
        ``autoencoder``: the held-out half, encoded and decoded.
    """
    train, heldout = dataset(data).load("train"), dataset(data).load("heldout")
    features, judge = load_features(f"{data}-features"), dataset(data).judge
    half = _alike(train, heldout[1], seed)
    precision, recall = precision_recall(half, heldout[0])
    limit = {
        "n": len(half),
        "accuracy": accuracy(*heldout, train, judge),
        "fd": frechet_distance(half, heldout[0], features),
        "fd_ratio": 1.0,
        "precision": precision,
        "recall": recall,
        "closer": None,
    }
    labels = heldout[1]
    baselines = {
        "gaussian": class_gaussian(train, labels, seed),
        "memoriser": memorise(train, labels, seed=seed),
        "memoriser+noise": memorise(train, labels, NOISE, seed),
    }
    if vae is not None:
        baselines["autoencoder"] = vae.decode(vae.encode(heldout[0]))
    rows = {
        name: evaluate_on(samples, labels, train, heldout, features, judge=judge)
        for name, samples in baselines.items()
    }
    return {"limit": limit, **rows}


def accuracy(
    samples: torch.Tensor,
    labels: torch.Tensor,
    train: Labelled,
    judge: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> float:
    """The share of samples in which ``judge``, or else a support vector machine, sees the class.

    The machine (radial basis functions on pixels, C = 10) has learnt from ``train`` alone and has
    nothing in common with the feature net or the model.
    """
    if judge is not None:
        return float((judge(samples) == labels).double().mean())
    from sklearn.svm import SVC  # a second of import, only where it is needed

    machine = SVC(C=10).fit(train[0].flatten(1).numpy(), train[1].numpy())
    return float((machine.predict(samples.flatten(1).numpy()) == labels.numpy()).mean())


def frechet_distance(a: torch.Tensor, b: torch.Tensor, features: nn.Module) -> float:
    """The distance between Gaussians fitted to two sets of images in feature space (Heusel 2017).

    Args:
        a: (n, C, H, W); or videos, (n, C, F, H, W), of which each frame and the next are one image.
        b: (m, …), the same.
        features: Maps images to (., num_features).
    """
    from torchmetrics.image.fid import FrechetInceptionDistance  # seconds of import

    a, b = (frame_pairs(x) if x.ndim == 5 else x for x in (a, b))
    # |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))
    distance = FrechetInceptionDistance(features)  # a net of one's own gets the floats as they are
    with torch.no_grad():
        distance.update(a, real=False)
        distance.update(b, real=True)
    return distance.compute().item()


def precision_recall(
    samples: torch.Tensor, real: torch.Tensor, k: int = NEIGHBOURS
) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019), here in raw pixels.

    A set's manifold is the union of balls around its points that reach the k-th nearest neighbour.
    Precision is the share of samples on the manifold of the real, recall the reverse.
    """
    a, b = _rows(samples), _rows(real)
    return _on_manifold(a, b, k), _on_manifold(b, a, k)


def _on_manifold(points: np.ndarray, of: np.ndarray, k: int) -> float:
    radii = _neighbours(of, k).kneighbors()[0][:, -1]  # (m,) itself left out
    distances = torch.cdist(torch.from_numpy(points), torch.from_numpy(of)).numpy()  # (n, m)
    return float((distances <= radii).any(1).mean())


def closer(
    samples: torch.Tensor, train: torch.Tensor, heldout: torch.Tensor, seed: int = 0
) -> float:
    """The share of samples whose nearest image lies in ``train``, not in ``heldout``.

    Near a half where the model has not memorised, 1 where it hands out its training images. The
    larger set is cut to the smaller one's size (more images, nearer neighbours); ties count half.
    """
    m = min(len(train), len(heldout))
    nearest = [_neighbours(_rows(_subset(images, m, seed)), 1) for images in (train, heldout)]
    to_train, to_heldout = (tree.kneighbors(_rows(samples))[0][:, 0] for tree in nearest)
    return float(((to_train < to_heldout) + 0.5 * (to_train == to_heldout)).mean())


def _neighbours(points: np.ndarray, k: int) -> NearestNeighbors:
    from sklearn.neighbors import NearestNeighbors  # half a second of import

    return NearestNeighbors(n_neighbors=k).fit(points)


def _rows(images: torch.Tensor) -> np.ndarray:
    return images.flatten(1).double().numpy()  # (n, C, H, W) -> (n, CHW)


def _subset(images: torch.Tensor, n: int, seed: int) -> torch.Tensor:
    """At most ``n`` of the images, drawn without replacement."""
    if len(images) <= n:
        return images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order[:n]]


def _alike(train: Labelled, labels: torch.Tensor, seed: int) -> torch.Tensor:
    """Images of ``train``, as many of each class as ``labels`` has; all where there are no more.

    Were classes more frequent in the one than in the other, that alone would be a distance.
    """
    images, classes = train
    if len(images) <= len(labels):
        return images
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label, count in zip(*labels.unique(return_counts=True), strict=True):
        members = torch.where(classes == label)[0]
        order = torch.randperm(len(members), generator=generator)
        chosen.append(members[order[:count]])
    return images[torch.cat(chosen)]


def _check(
    samples: torch.Tensor, labels: torch.Tensor, train: Labelled, reference: Labelled
) -> None:
    if not samples.is_floating_point():
        raise TypeError(f"samples has dtype {samples.dtype}; it must be floating point.")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels has dtype {labels.dtype}; it must be torch.int64.")
    n, shape = len(reference[0]), tuple(reference[0].shape[1:])
    if tuple(samples.shape[1:]) != shape:
        raise ValueError(f"samples has shape {tuple(samples.shape)}; it must be {(n, *shape)}.")
    if len(samples) != n:
        raise ValueError(
            f"samples holds {len(samples)} images; it must hold {n}, as many as the real ones they "
            "are compared with, since distance, precision and recall change with the number."
        )
    if tuple(labels.shape) != (n,):
        raise ValueError(f"labels has shape {tuple(labels.shape)}; it must be {(n,)}.")
    if not torch.isfinite(samples).all():
        bad = int((~torch.isfinite(samples)).flatten(1).any(1).sum())
        raise ValueError(f"samples must be finite; {bad} of {n} images hold NaN or infinity.")
    low, high = samples.min().item(), samples.max().item()
    if low < -1 or high > 1:
        raise ValueError(
            f"samples spans [{low:.3g}, {high:.3g}]; it must lie in [-1, 1]: use clamp(-1, 1)."
        )
    if low >= 0:
        raise ValueError(
            f"samples spans [{low:.3g}, {high:.3g}]: it seems to be in [0, 1]; use 2 * samples - 1."
        )
    classes = int(train[1].max()) + 1
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels spans [{int(labels.min())}, {int(labels.max())}]; it must lie in "
            f"[0, {classes - 1}] (samples of the null class have no class to be judged by)."
        )
