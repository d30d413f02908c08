"""Training in stages: the races cost what they say, and the figure shows the table."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dit_edu.hidit.distill import unexplained_macs
from dit_edu.lab.experiments import get_experiment, read, stale
from dit_edu.lab.experiments.multiscale import MODEL, RECIPE, dit, recipe_of
from dit_edu.lab.experiments.stages import (
    GRID,
    HAND_OVERS,
    TOKENS,
    VIEWS,
    budget,
    stage_recipe,
    update_macs,
)
from dit_edu.lab.figures import stages_of_training
from dit_edu.lab.figures.stages import RUNS, SPENT, curve_of, seen
from dit_edu.scaling import Architecture, training_macs

TABLES = ("stages", "stages-share", "hand-over", "distillation", "distillation-teacher")


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_whole(name):
    assert stale(get_experiment(name), read(name)) == []


def test_the_budget_is_that_of_the_plain_training_in_closed_form():
    want = training_macs(Architecture(**{k: v for k, v in MODEL.items() if k != "embed_std"}),
                         steps=RECIPE["steps"], batch=RECIPE["batch_size"])  # fmt: skip
    assert budget() == want


@pytest.mark.parametrize("name", ["stages", "stages-share"])
def test_all_trainings_in_stages_cost_the_same(name):
    for row in read(name):
        assert sum(row["metrics"]["macs"]) == pytest.approx(budget(), rel=2e-3)


def test_the_schedule_of_the_notes_keeps_its_proportions():
    first, second = get_experiment("stages").settings["p = 4 as in the notes"]["stages"]
    first, second = stage_recipe(first), stage_recipe(second)
    assert first.batch_size == 2 * second.batch_size
    assert first.lr == 2 * second.lr
    assert second.steps / first.steps == pytest.approx(2, rel=0.01)
    assert second.warmup / second.steps == pytest.approx(1000 / 200_000, abs=0.002)


def test_one_stage_is_the_plain_training_of_the_chapter_before():
    """The same recipe and seeds; only the last digits may differ between machines."""
    before = {
        r["seed"]: r["metrics"]["loss"] for r in read("multiscale") if r["setting"] == "p = 2"
    }
    for row in read("stages"):
        if row["setting"] == "one stage":
            assert row["metrics"]["loss"] == pytest.approx(before[row["seed"]], rel=0.01)


def test_students_with_a_teacher_and_the_one_with_more_updates_cost_the_same():
    spent = {row["setting"]: row["metrics"]["training_macs"] for row in read("distillation")}
    assert spent["teacher 1/2"] == pytest.approx(spent["alone, equal MACs"], rel=2e-3)
    student = update_macs(recipe_of(dit(depth=2)))
    teacher = update_macs(recipe_of(dit())) / 3
    assert spent["teacher 1/2"] == RECIPE["steps"] * (student + teacher)
    extra = spent["teacher 1/2 and tokens"] - spent["teacher 1/2"]
    tokens, d = RECIPE["batch_size"] * GRID[0] * GRID[1], MODEL["hidden_size"]
    assert extra == RECIPE["steps"] * unexplained_macs(tokens, d, d)
    assert set(TOKENS) == {"features", "feature_weight"}


def test_only_the_ends_are_fresh_where_blocks_go_over_alone():
    torch.manual_seed(0)
    stages = get_experiment("stages").settings["p = 4 for 1/2, blocks alone"]["stages"]
    first, second = (stage_recipe(part) for part in stages)
    model = first.build_model()
    for weight in model.parameters():
        weight.data = torch.randn_like(weight)
    whole, blocks = (
        HAND_OVERS[name](model, second, "stretch") for name in ("carried", "blocks alone")
    )
    other = {
        name for name, weight in whole.state_dict().items()
        if not torch.equal(weight, blocks.state_dict()[name])
    }  # fmt: skip
    assert other == {
        f"{end}.{part}"
        for end in ("x_embedder.proj", "final_layer.linear")
        for part in ("weight", "bias")
    }


def test_small_images_get_noise_of_the_usual_size():
    given = {}

    def losses(model, x0, t, y, noise):
        given.update(x0=x0, noise=noise)
        return {}

    process = type("Process", (), {"losses": staticmethod(losses)})
    model = type("Model", (), {"input_size": (8, 8)})
    x0, noise = torch.randn(2, 64, 3, 16, 16)
    VIEWS["resized"].loss_fn(model, process, x0, None, None, noise)
    assert given["x0"].std().item() == pytest.approx(0.5, rel=0.02)
    assert given["noise"].std().item() == pytest.approx(1, rel=0.02)


def test_the_figure_shows_the_table():
    figure = stages_of_training()
    shown, ends, losses = figure.panels
    tokens = np.asarray(shown.tokens)
    assert tokens.shape == (len(RUNS), len(SPENT), 2)
    assert (tokens[0] == GRID).all() and (tokens[:, -1] == GRID).all()
    assert all((tokens[k, 0] == GRID[0] // 2).all() for k in range(1, len(RUNS)))
    for k, name in enumerate(RUNS):
        rows = [row for row in read("stages") if row["setting"] == name]
        want = np.mean([row["metrics"]["loss"] for row in rows])
        assert float(ends.rows[k][0][1]) == pytest.approx(want, abs=1e-4)
        last = np.mean([row["metrics"]["curve"][-1][1] for row in rows])
        assert np.asarray(losses.lines[0].y)[k, -1] == pytest.approx(last, rel=1e-3)
    (low, high), mean = (losses.lines[0].low, losses.lines[0].high), losses.lines[0].y
    assert (np.asarray(low) <= np.asarray(mean) + 1e-9).all()
    assert (np.asarray(mean) <= np.asarray(high) + 1e-9).all()


def test_a_curve_takes_the_first_value_at_a_hand_over():
    row = {"metrics": {"curve": [[0.1, 1.0], [0.5, 0.5], [0.5, 0.8], [1.0, 0.3]]}}
    np.testing.assert_allclose(curve_of(row, [10, 50, 51, 100]), [1.0, 0.5, 0.79, 0.3], rtol=1e-6)


def test_a_window_is_a_part_and_a_small_image_the_whole():
    whole, window, small = (seen(view, 3) for view in ("whole", "windows", "resized"))
    assert whole.shape == window.shape == small.shape
    part = window[:, ::2, ::2]
    assert any(
        np.array_equal(part, whole[:, a : a + 8, b : b + 8])
        for a in range(0, 9, 2)
        for b in range(0, 9, 2)
    )
    np.testing.assert_allclose(small.mean((1, 2)), whole.mean((1, 2)), atol=1e-6)
