"""Digits, folds and the stream of batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from dit_edu.lab import data


def test_digits_are_scikit_learns_in_two_stratified_halves():
    train, train_labels = data.digits("train")
    heldout, heldout_labels = data.digits("heldout")
    everything, labels = data.digits("all")
    assert (len(train), len(heldout)) == (898, 899)
    assert train.shape[1:] == (1, 8, 8) and train.dtype == torch.float32
    assert labels.dtype == torch.int64
    raw = load_digits()
    assert np.array_equal((everything[:, 0].numpy() + 1) * 8, raw.images)
    assert np.array_equal(labels.numpy(), raw.target)
    difference = torch.bincount(train_labels) - torch.bincount(heldout_labels)
    assert difference.abs().max() <= 1
    both = torch.cat([train, heldout]).flatten(1)
    assert sorted(both.tolist()) == sorted(everything.flatten(1).tolist())
    # No image lies in both halves, and the split never moves.
    assert torch.cdist(train.flatten(1), heldout.flatten(1)).min() > 0
    assert train_labels[:12].tolist() == [1, 3, 0, 1, 4, 5, 6, 7, 9, 4, 5, 6]


def test_digits_are_copies_and_unknown_splits_are_named():
    data.digits("train")[0].zero_()
    assert data.digits("train")[0].abs().sum() > 0
    with pytest.raises(ValueError, match=r"split='held-out'.*Did you mean 'heldout'"):
        data.digits("held-out")


@pytest.mark.parametrize("name", data.DATASETS)
def test_registry_tells_the_truth(name):
    entry = data.dataset(name)
    images, labels = entry.load("heldout")
    assert images.shape[1] == entry.channels
    assert images.shape[-2:] == (entry.size, entry.size)  # of videos, behind the frames
    assert images.min() >= -1 and images.max() <= 1
    assert set(labels.tolist()) == set(range(entry.num_classes))
    assert entry.name == name


def test_registry_of_shapes_takes_options_and_knows_its_neighbours():
    images, labels = data.dataset("shapes").load("heldout", level="free", size=16)
    assert images.shape == (2000, 3, 16, 16) and len(labels) == 2000
    with pytest.raises(ValueError, match="Did you mean 'digits'"):
        data.dataset("digit")


@pytest.mark.parametrize("k", [2, 5])
def test_folds_partition_and_stratify(k):
    _, labels = data.digits("train")
    parts = data.folds(labels, k, seed=3)
    assert len(parts) == k
    assert torch.equal(torch.cat([judge for _, judge in parts]).sort().values, torch.arange(898))
    for fit, judge in parts:
        assert torch.equal(torch.cat([fit, judge]).sort().values, torch.arange(898))
        expected = torch.bincount(labels) / k
        assert (torch.bincount(labels[judge]) - expected).abs().max() < 1
    again = data.folds(labels, k, seed=3)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(parts, again, strict=True))
    assert not torch.equal(parts[0][1], data.folds(labels, k, seed=4)[0][1])


@pytest.mark.parametrize("k", [1, 1000])
def test_folds_refuse(k):
    with pytest.raises(ValueError, match=rf"k={k} must be in \[2, "):
        data.folds(data.digits("train")[1], k)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), batch=st.integers(1, 100), seed=st.integers(0, 5))
def test_batches_cut_a_stream_of_shuffles(n, batch, seed):
    steps = 2 * n  # whole epochs: 2 n batches hold 2 batch epochs
    stream = torch.cat([data.batch_indices(n, batch, seed, k) for k in range(steps)])
    for epoch in stream.view(-1, n):
        assert torch.equal(epoch.sort().values, torch.arange(n))


def test_batches_are_a_function_of_seed_and_step():
    later_first = [data.batch_indices(898, 128, 1, k) for k in (500, 3)]
    assert torch.equal(later_first[1], data.batch_indices(898, 128, 1, 3))
    assert torch.equal(later_first[0], data.batch_indices(898, 128, 1, 500))
    assert not torch.equal(data.batch_indices(898, 128, 1, 0), data.batch_indices(898, 128, 2, 0))
    assert not torch.equal(*data.batch_indices(64, 128, 0, 0).view(2, 64))  # epochs differ
    with pytest.raises(ValueError, match="step=-1"):
        data.batch_indices(10, 2, 0, -1)
    with pytest.raises(ValueError, match="batch_size=0"):
        data.batch_indices(10, 0, 0, 0)


def test_to_unit():
    x = torch.tensor([-3.0, -1.0, 0.0, 0.5, 1.0, 7.0])
    assert data.to_unit(x).tolist() == [0, 0, 0.5, 0.75, 1, 1]
