"""The figure of the page on claims: its numbers are those of the tables and of the ledger."""

from __future__ import annotations

import numpy as np
import pytest

from dit_edu.lab.figures import taken_apart
from dit_edu.lab.figures.claims import HABITS
from dit_edu.lab.ledger import PARTS, VERDICTS, read_ledger


def test_five_claims_lose_by_one_question_each():
    left = np.asarray(taken_apart().panels[0].values)  # (habits, printed and checked), per cent
    assert left.shape == (len(HABITS), 2)
    assert (left[:, 1] < left[:, 0]).all()
    assert left[2].tolist() == [88, 39]  # 8.2 times cheaper an image, 1.64 times a step
    assert left[3].tolist() == [95, 90]
    assert left[4].tolist() == [100, 65]


def test_a_router_saves_little_over_a_thin_model():
    full, thin = np.asarray(taken_apart().panels[0].values)[0]
    assert full == pytest.approx(39, abs=1)
    assert thin < 3


def test_the_bars_count_the_ledger():
    counts = np.asarray(taken_apart().panels[2].values)
    claims, _ = read_ledger()
    assert counts.shape == (1 + len(PARTS), len(VERDICTS))
    assert counts[0].sum() == len(claims)
    np.testing.assert_array_equal(counts[1:].sum(0), counts[0])
