"""The figure and the races of the chapter on width: what they show is so."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from dit_edu.dddit.timestep import WIDTHS, TimestepDiT
from dit_edu.lab.experiments import get_experiment, read, stale
from dit_edu.lab.experiments.timestep import (
    EQUAL,
    POLICIES,
    STAGES,
    best_bands,
    macs_by_bin,
    progressive,
)
from dit_edu.lab.figures import width_by_step
from dit_edu.sampling import timestep_grid

TABLES = ("timestep", "timestep-nested", "timestep-shapes", "timestep-cost")


def share(bands) -> float:
    return float(np.mean([WIDTHS[name] for name in bands]))


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_whole(name):
    assert stale(get_experiment(name), read(name)) == []


def test_four_policies_cost_the_same_over_t_and_over_the_sampler():
    assert [share(POLICIES[name]) for name in EQUAL] == [0.5] * 4
    assert [t // 100 for t in timestep_grid(1000, 10)] == list(range(9, -1, -1))
    rows = [r for r in read("timestep") if r["setting"] in (*EQUAL, "thin")]
    assert len({r["metrics"]["macs"] for r in rows}) == 1
    assert all(np.mean(r["metrics"]["macs_by_bin"]) == r["metrics"]["macs"] for r in rows)


def test_macs_are_counted_where_they_run():
    torch.manual_seed(0)
    net = TimestepDiT(bands=POLICIES["heavy at low t"], **STAGES["digits"][0])
    ran, widths = np.array(macs_by_bin(net)), dict(zip(WIDTHS, net.width_macs(), strict=True))
    rest = ran - [widths[name] for name in net.bands]
    assert (rest == rest[0]).all()


def test_the_level_of_the_notes():
    assert set(progressive(3000)) == {"base", "heavy"}
    assert share(progressive(3000)) == pytest.approx(5 / 6, abs=1e-3)
    assert list(progressive()) == sorted(progressive(), reverse=True)  # heavy comes first
    half = [1 - t / 1000 / 2 for t in range(1001)]
    assert min(half) == 0.5


def test_the_best_bands_are_the_best():
    g = np.random.default_rng(0)
    for _ in range(3):
        loss = np.sort(g.random((3, 6)), axis=0)[::-1]
        found = best_bands(loss)
        assert share(found) <= 0.5
        number = {name: k for k, name in enumerate(WIDTHS)}

        def total(bands, loss=loss, number=number):
            return sum(loss[number[name], b] for b, name in enumerate(bands))

        paid = (bands for bands in product(WIDTHS, repeat=6) if share(bands) <= 0.5)
        assert total(found) == pytest.approx(min(map(total, paid)))


@pytest.mark.parametrize("name", ["timestep-nested", "timestep-shapes"])
def test_no_policy_of_the_table_is_better_where_the_best_was_chosen(name):
    for row in read(name):
        seen = row["metrics"]["train_loss_by_bin"]
        found = row["metrics"]["policies"]

        def loss(policy, seen=seen, found=found):
            return sum(seen[width][b] for b, width in enumerate(found[policy]["bands"]))

        equal = [policy for policy in EQUAL if policy in found]
        assert loss("best by loss") <= min(map(loss, equal)) + 1e-9
        assert len({found[policy]["macs"] for policy in equal}) == 1


def test_the_figure_shows_the_table():
    widths, digits, table, spent = width_by_step().panels
    rows = [row["metrics"]["policies"] for row in read("timestep-nested")]
    names = np.array([POLICIES[name][::-1] for name in EQUAL])  # from noise to image
    assert (np.asarray(widths.values) == np.vectorize(WIDTHS.get)(names)).all()
    frames = np.asarray(digits.frames)  # (K, policies, n, C, H, W)
    for p, name in enumerate(EQUAL):
        kept = np.array(rows[0][name]["guesses"]) / 127.5 - 1
        np.testing.assert_allclose(frames[:, p, :, 0], kept)
    ends = [line.y[-1] for line in spent.lines]
    assert np.allclose(ends, ends[0]) and len(ends) == 4
    cells = np.asarray(table.rows, dtype=object)  # (K, policies, columns)
    assert (cells[:, :, 1] == names.T).all()
    losses = [np.mean([row[name]["loss"] for row in rows]) for name in EQUAL]
    assert [float(cell) for cell in cells[0, :, 3]] == pytest.approx(losses, abs=5e-5)
