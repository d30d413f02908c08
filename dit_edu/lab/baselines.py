"""Two generators that understand nothing, for metrics to be read against.

A model worth its steps beats the Gaussian (it has learnt more than means and covariances) and is,
unlike the memoriser, no closer to its training images than to others.
"""

from __future__ import annotations

import torch

Labelled = tuple[torch.Tensor, torch.Tensor]  # images (n, C, H, W) float32, labels (n,) int64


def class_gaussian(train: Labelled, labels: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Draw from one Gaussian per class, with the mean and the full covariance of its images.

    Args:
        train: The images and labels to fit; at least two images of each class asked for.
        labels: (m,) the classes to draw.
        seed: Of the draw.

    Returns:
        (m, C, H, W), clipped to [-1, 1].

    Raises:
        ValueError: ``labels`` holds a class with fewer than two training images.
    """
    images, classes = train
    generator = torch.Generator().manual_seed(seed)
    samples = torch.empty(len(labels), *images.shape[1:])
    for label in labels.unique():
        members = images[classes == label].flatten(1)  # (k, C, H, W) -> (k, CHW)
        if len(members) < 2:
            raise ValueError(
                f"labels holds {int(label)}, of which train has {len(members)} images."
            )
        asked = labels == label
        weights = torch.randn(int(asked.sum()), len(members), generator=generator)  # (m_c, k)
        # With z ~ N(0, I_k) and rows x_i: mean + sum_i z_i (x_i - mean) / sqrt(k - 1) has the
        # covariance sum_i (x_i - mean)(x_i - mean)^T / (k - 1), which is never formed.
        centred = members - members.mean(0)
        drawn = members.mean(0) + weights @ centred / (len(members) - 1) ** 0.5  # (m_c, CHW)
        samples[asked] = drawn.view(-1, *images.shape[1:])
    return samples.clamp(-1, 1)


def memorise(
    train: Labelled, labels: torch.Tensor, noise: float = 0.0, seed: int = 0
) -> torch.Tensor:
    """Hand out training images of the classes asked for, drawn with replacement, plus noise.

    Args:
        train: The images and labels to hand out.
        labels: (m,) the classes asked for.
        noise: Standard deviation of the Gaussian noise on each pixel.
        seed: Of the draw.

    Returns:
        (m, C, H, W), clipped to [-1, 1].

    Raises:
        ValueError: ``labels`` holds a class without training images.
    """
    images, classes = train
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.empty_like(labels)
    for label in labels.unique():
        members = torch.where(classes == label)[0]
        if not len(members):
            raise ValueError(f"labels holds {int(label)}, of which train has no images.")
        asked = labels == label
        chosen[asked] = members[
            torch.randint(len(members), (int(asked.sum()),), generator=generator)
        ]
    samples = images[chosen]  # (m, C, H, W)
    return (samples + noise * torch.randn(samples.shape, generator=generator)).clamp(-1, 1)
