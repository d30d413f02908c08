"""The baselines have the moments, the classes and the images they claim."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dit_edu.lab.baselines import class_gaussian, memorise
from dit_edu.lab.data import digits


def test_gaussian_has_the_mean_and_full_covariance_of_each_class():
    images, classes = digits("train")
    train = images * 0.1, classes  # far from -1 and 1, so that nothing is clipped
    labels = torch.tensor([3, 7]).repeat_interleave(40_000)
    samples = class_gaussian(train, labels, seed=1)
    for label in (3, 7):
        real = train[0][classes == label].flatten(1).numpy()
        drawn = samples[labels == label].flatten(1).numpy()
        sigma = real.std(0).max()
        assert np.abs(drawn.mean(0) - real.mean(0)).max() < 5 * sigma / 200
        covariance = np.cov(real, rowvar=False)
        error = np.linalg.norm(np.cov(drawn, rowvar=False) - covariance)
        assert error < 0.03 * np.linalg.norm(covariance)


def test_memoriser_hands_out_training_images_of_the_class_asked_for():
    images, classes = digits("train")
    labels = digits("heldout")[1]
    samples = memorise((images, classes), labels)
    rows = {
        (tuple(row), label)
        for row, label in zip(images.flatten(1).tolist(), classes.tolist(), strict=True)
    }
    handed = [
        (tuple(row), label)
        for row, label in zip(samples.flatten(1).tolist(), labels.tolist(), strict=True)
    ]
    assert set(handed) <= rows
    assert len(set(handed)) > 500  # not always the same ones
    noisy = memorise((images * 0.1, classes), labels, noise=0.05)
    assert (noisy - samples * 0.1).std().item() == pytest.approx(0.05, rel=0.02)


@pytest.mark.parametrize("baseline", [class_gaussian, memorise])
def test_seeds_ranges_and_unknown_classes(baseline):
    train = digits("train")
    labels = torch.arange(10)
    first = baseline(train, labels, seed=4)
    assert first.shape == (10, 1, 8, 8) and first.abs().max() <= 1
    assert torch.equal(first, baseline(train, labels, seed=4))
    assert not torch.equal(first, baseline(train, labels, seed=5))
    with pytest.raises(ValueError, match="labels holds 10"):
        baseline(train, torch.tensor([1, 10]))
