"""Metrics against closed forms, brute force and generators of known worth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch import nn

from dit_edu.lab import metrics
from dit_edu.lab.baselines import memorise
from dit_edu.lab.data import digits, folds
from dit_edu.lab.features import load_features


class Linear(nn.Module):
    """A fixed linear 'feature net' that keeps float64."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.num_features = features
        generator = torch.Generator().manual_seed(0)
        matrix = torch.randn(width, features, generator=generator, dtype=torch.float64)
        self.register_buffer("matrix", matrix / width**0.5)

    def forward(self, images):
        return images.flatten(1).double() @ self.matrix


def images_of(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rows).float()[:, None, None]  # (n, d) -> (n, 1, 1, d)


def test_frechet_distance_is_scipys_formula():
    train, heldout = digits("train")[0], digits("heldout")[0]
    net = Linear(64, 12)
    a, b = net(train).numpy(), net(heldout).numpy()
    s_a, s_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(
        s_a + s_b - 2 * sqrtm(s_a @ s_b).real
    )
    assert metrics.frechet_distance(train, heldout, net) == pytest.approx(expected, rel=1e-9)
    # Symmetric, and zero against itself.
    back = metrics.frechet_distance(heldout, train, net)
    assert back == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet_distance(train, train, net) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_two_gaussians_in_closed_form():
    """Diagonal covariances: |m_a - m_b|^2 + sum (s_a - s_b)^2, here 3 * 0.5^2 + 3 * 0.2^2."""
    rng = np.random.default_rng(0)
    a = 0.4 * rng.standard_normal((200_000, 3))
    b = 0.5 + 0.6 * rng.standard_normal((200_000, 3))
    net = nn.Flatten()
    net.num_features = 3
    found = metrics.frechet_distance(images_of(a), images_of(b), net)
    assert found == pytest.approx(3 * 0.5**2 + 3 * 0.2**2, rel=0.01)


def brute_force(points, of, k):
    covered = 0
    for p in points:
        for i, q in enumerate(of):
            others = sorted(np.linalg.norm(q - r) for j, r in enumerate(of) if j != i)
            if np.linalg.norm(p - q) <= others[k - 1]:
                covered += 1
                break
    return covered / len(points)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(5, 14),
    m=st.integers(5, 14),
    k=st.integers(1, 4),
    offset=st.floats(0, 3),
)
def test_precision_and_recall_are_their_definition(seed, n, m, k, offset):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((n, 2)) + offset, rng.standard_normal((m, 2))
    found = metrics.precision_recall(images_of(a), images_of(b), k)
    a, b = a.astype(np.float32).astype(float), b.astype(np.float32).astype(float)
    assert found == (brute_force(a, b, k), brute_force(b, a, k))


def test_precision_and_recall_at_the_extremes():
    real = digits("heldout")[0]
    assert metrics.precision_recall(real, real) == (1.0, 1.0)
    assert metrics.precision_recall(real + 100, real) == (0.0, 0.0)
    one_class = real[digits("heldout")[1] == 0].repeat(11, 1, 1, 1)[: len(real)]
    precision, recall = metrics.precision_recall(one_class, real)
    assert precision == 1.0 and recall < 0.15


def test_closer_tells_copies_from_strangers():
    train, heldout = digits("train")[0], digits("heldout")[0]
    assert metrics.closer(train, train, heldout) == 1.0
    # All but the one image by which the held-out half is cut to the training half's size.
    assert metrics.closer(heldout, train, heldout) <= 1 / 899
    strangers = torch.rand(400, 1, 8, 8) * 2 - 1
    there, back = (
        metrics.closer(strangers, train, heldout),
        metrics.closer(strangers, heldout, train),
    )
    assert there + back == pytest.approx(1)
    assert metrics.closer(strangers, train, train) == 0.5  # nothing but ties
    # Twice as many training images do not make samples look copied.
    both = torch.cat([train, heldout])
    even, odd = both[::2], both[1::2]
    assert abs(metrics.closer(even[:300], odd, even[300:500]) - 0.5) < 0.12


def test_accuracy_judges_real_digits_nearly_perfectly():
    train, (images, labels) = digits("train"), digits("heldout")
    assert metrics.accuracy(images, labels, train) > 0.98
    assert metrics.accuracy(images, (labels + 1) % 10, train) < 0.02


class Paler:
    """In place of an autoencoder: what it decodes has lost a tenth of its contrast."""

    def encode(self, images):
        return images[:, :, ::2]

    def decode(self, latents):
        return 0.9 * latents.repeat_interleave(2, 2)


@pytest.fixture(scope="module")
def references():
    return metrics.references("digits", vae=Paler())


def test_references_order_as_they_must(references):
    limit, gaussian = references["limit"], references["gaussian"]
    memoriser, noisy = references["memoriser"], references["memoriser+noise"]
    assert all(set(row) == set(limit) for row in references.values())
    assert limit["closer"] is None and limit["fd_ratio"] == 1 and limit["n"] == 898
    assert limit["accuracy"] > 0.98
    assert 0.85 < limit["recall"] < 0.95 and 0.85 < limit["precision"] < 0.95
    # The Gaussian has means and covariances right, and yet is further from real than copies are.
    assert gaussian["fd_ratio"] > 2 * memoriser["fd_ratio"] > 2
    assert gaussian["accuracy"] > 0.98 and gaussian["recall"] < 0.7
    assert 0.5 < gaussian["closer"] < 0.7
    # Only ``closer`` gives the memoriser away.
    assert memoriser["accuracy"] == 1 and memoriser["precision"] > 0.85
    assert memoriser["closer"] == 1.0 and noisy["closer"] > 0.99
    for row in references.values():
        assert row["fd_ratio"] == pytest.approx(row["fd"] / limit["fd"])


def test_an_autoencoder_is_judged_by_what_it_makes_of_held_out_images(references):
    images, labels = digits("heldout")
    again = 0.9 * images[:, :, ::2].repeat_interleave(2, 2)
    assert references["autoencoder"] == metrics.evaluate(again, labels)


def test_evaluate_is_the_row_of_the_references_whatever_the_order(references):
    train, (_, labels) = digits("train"), digits("heldout")
    samples = memorise(train, labels)
    row = metrics.evaluate(samples, labels)
    assert row == references["memoriser"]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    shuffled = metrics.evaluate(samples[order], labels[order])
    assert shuffled == pytest.approx(row, rel=1e-4)
    assert metrics.evaluate(samples.double(), labels) == row


def test_settings_can_be_chosen_inside_the_training_half():
    images, labels = digits("train")
    fit, judge = folds(labels)[0]
    train, reference = (images[fit], labels[fit]), (images[judge], labels[judge])
    row = metrics.evaluate_on(
        memorise(train, reference[1]), reference[1], train, reference, load_features()
    )
    assert row["n"] == 449 and row["closer"] == 1.0 and row["accuracy"] == 1.0


def test_distance_depends_on_n_which_is_why_it_is_fixed():
    """Half the images, nearly twice the distance, with nothing else changed."""
    train, heldout = digits("train")[0], digits("heldout")[0]
    net = load_features()
    whole = metrics.frechet_distance(train, heldout, net)
    assert metrics.frechet_distance(train[::2], heldout[::2], net) > 1.4 * whole


SAMPLES, LABELS = digits("heldout")


@pytest.mark.parametrize(
    ("samples", "labels", "error", "message"),
    [
        (SAMPLES[:500], LABELS[:500], ValueError, "holds 500 images; it must hold 899"),
        (SAMPLES[:, 0], LABELS, ValueError, r"shape \(899, 8, 8\); it must be \(899, 1, 8, 8\)"),
        (SAMPLES.repeat(1, 3, 1, 1), LABELS, ValueError, r"\(899, 3, 8, 8\)"),
        (SAMPLES * 1.5, LABELS, ValueError, r"spans \[-1.5, 1.5\]; it must lie in \[-1, 1\]"),
        ((SAMPLES + 1) / 2, LABELS, ValueError, r"seems to be in \[0, 1\]; use 2 \* samples - 1"),
        (SAMPLES / 0, LABELS, ValueError, "899 of 899 images hold NaN or infinity"),
        (SAMPLES.long(), LABELS, TypeError, "samples has dtype torch.int64"),
        (SAMPLES, LABELS.float(), TypeError, "labels has dtype torch.float32"),
        (SAMPLES, LABELS[:-1], ValueError, r"labels has shape \(898,\); it must be \(899,\)"),
        (SAMPLES, LABELS + 1, ValueError, r"labels spans \[1, 10\]; .* \[0, 9\]"),
        (SAMPLES, LABELS - 1, ValueError, r"labels spans \[-1, 8\]"),
    ],
)
def test_bad_samples_are_named(samples, labels, error, message):
    with pytest.raises(error, match=message):
        metrics.evaluate(samples, labels)


def test_unknown_data():
    with pytest.raises(ValueError, match="Did you mean 'digits'"):
        metrics.evaluate(SAMPLES, LABELS, data="digit")


@pytest.mark.parametrize("k", [1, 4])
def test_luck_adds_one_over_n_for_each_set_that_is_finite(k):
    """Two real halves: 2 c/n. A memoriser of the one against the other: c/(k n) more."""
    n, d, repeats, net = 400, 16, 60, Linear(16, 16)
    net.matrix.copy_(torch.eye(d))
    limit, copied = [], []
    for seed in range(repeats):
        rows = np.random.default_rng(seed).normal(scale=0.2, size=(2 * n, d))  # in [-1, 1]
        train, heldout = images_of(rows[:n]), images_of(rows[n:])
        copies = memorise((train, torch.zeros(n).long()), torch.zeros(k * n).long(), seed=seed)
        limit.append(metrics.frechet_distance(train, heldout, net))
        copied.append(metrics.frechet_distance(copies, heldout, net))
    assert np.mean(copied) / np.mean(limit) == pytest.approx(1 + 1 / (2 * k), rel=0.05)


def test_the_limit_has_the_classes_of_the_reference():
    images = torch.arange(60.0).view(60, 1, 1, 1)
    labels = torch.arange(60) % 3
    asked = torch.tensor([0] * 7 + [2] * 5)
    chosen = metrics._alike((images, labels), asked, seed=0).flatten().long()
    assert torch.equal(torch.bincount(labels[chosen]), torch.tensor([7, 0, 5]))
    assert len(chosen.unique()) == 12  # none twice
    assert torch.equal(metrics._alike((images, labels), labels, seed=0), images)
