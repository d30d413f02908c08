"""The page of bugs: what is broken fails its small test, what is repaired passes; judges agree."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dit_edu.lab.bugs import FUNCTIONS, broken, failing, failure, repaired, right, wrong
from dit_edu.lab.exercises import check, judge
from dit_edu.lab.exercises.bugs import CHOOSERS, EXERCISES
from dit_edu.lab.figures import bugs as pictures

#: A word of what the judge has to say of each broken function, and one of its small test.
REASONS = {
    "gates": ("after it had been closed", "hand its tokens on"),
    "channels": ("fourth channel is not guided", "3 of 4 channels"),
    "null": ("1000 is the null class of ImageNet", "row 1000"),
    "mask": ("exp(0) = 1", "must not be seen"),
    "router": ("No gradient reaches", "no gradient reaches"),
    "entropy": ("makes it *large*", "probability of 0.33"),
    "batch": ("all images together", "3 of 3 images"),
    "paper": ("product with 0 saves nothing", "6 layers were computed"),
    "waves": ("Frequencies grow", "similarity to the next step"),
    "dropout": ("one vendor's devices", "does not run on the device"),
    "variance": ("variance squared", "not 0.04"),
    "grid": ("square with as many tokens", "the one below"),
}


def test_every_bug_stands_in_three_places_and_has_an_exercise():
    assert set(REASONS) == set(FUNCTIONS)
    assert [name.removeprefix("bugs-") for name in list(EXERCISES)[:12]] == list(FUNCTIONS)
    for name, function in FUNCTIONS.items():
        sick, well = getattr(broken, function), getattr(repaired, function)
        assert inspect.signature(sick) == inspect.signature(well)
        assert sick.__doc__ == well.__doc__  # both promise the same
        assert callable(getattr(failing, f"test_{name}"))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_broken_is_rejected_with_the_right_reason(name):
    by_judge, by_test = REASONS[name]
    assert by_judge in judge(EXERCISES[f"bugs-{name}"], wrong(name))
    assert by_test in failure(name, wrong(name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_repaired_is_accepted(name):
    assert judge(EXERCISES[f"bugs-{name}"], right(name)) is None
    assert failure(name, right(name)) is None


@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_repairs_are_rejected_each_for_a_reason_of_its_own(name):
    exercise = EXERCISES[f"bugs-{name}"]
    assert len(exercise.wrong) >= 3  # as it was, and two more
    reasons = [judge(exercise, answer) for answer in exercise.wrong.values()]
    assert len({*reasons, None}) == len(reasons) + 1
    assert not any("raised" in reason for reason in reasons)


def test_the_small_test_draws_the_same_every_time_and_leaves_no_trace():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert failure("mask", wrong("mask")) == failure("mask", wrong("mask"))
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="masks"):
        failure("masks", right("mask"))


def test_a_repair_in_other_words_is_accepted():
    def masked(logits, seen):
        return (logits + torch.zeros_like(logits).masked_fill(~seen, -math.inf)).softmax(-1)

    def dropped(y, prob, null):
        drawn = torch.empty(y.shape, device=y.device).uniform_()
        return torch.where(drawn < prob, torch.full_like(y, null), y)

    assert judge(EXERCISES["bugs-mask"], masked) is None
    assert judge(EXERCISES["bugs-dropout"], dropped) is None


def test_an_answer_that_is_wrong_in_a_new_way_is_told_what_the_small_test_says(capsys):
    reason = judge(EXERCISES["bugs-channels"], lambda cond, uncond, scale: 0 * cond)
    assert reason == "The test fails: guidance moves 0 of 4 channels."
    check("bugs-channels", lambda cond, uncond, scale: 2 * scale * cond)
    assert "off by up to" in capsys.readouterr().out


@pytest.mark.parametrize("how", CHOOSERS)
def test_choosers_are_what_the_judge_takes_them_for(how):
    kept, contaminated = CHOOSERS[how]
    scores = torch.rand(5, 8, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([kept(row[None], 2) for row in scores])
    assert torch.equal(kept(scores, 2), alone) != contaminated


def test_the_lab_hands_out_the_broken_functions_and_folds_away_the_repaired():
    path = Path(__file__).resolve().parents[2] / "notebooks" / "bugs.ipynb"
    cells = [c for c in json.loads(path.read_text("utf8"))["cells"] if c["cell_type"] == "code"]
    code = {"".join(c["source"]): "hide-cell" in c["metadata"].get("tags", []) for c in cells}
    for name, function in FUNCTIONS.items():
        for where, folded in ((broken, False), (repaired, True)):
            source = inspect.getsource(getattr(where, function)).strip()
            found = [hidden for text, hidden in code.items() if text.startswith(source)]
            assert found == [folded], f"{name}: copy {where.__name__} into the lab"


@pytest.mark.parametrize("name", ["gates", "mask", "router", "entropy", "batch", "grid"])
def test_pictures_are_the_same_until_the_bug_is_turned_up(name):
    shown = getattr(pictures, name)()
    assert shown.pictures.shape == (2, 6, pictures.SIDE, pictures.SIDE)
    well, sick = np.array(shown.numbers)
    assert not torch.equal(*shown.pictures[:, -1])
    if name in ("gates", "router", "entropy", "batch"):  # a slider that begins with nothing
        assert torch.equal(*shown.pictures[:, 0]) and well[0] == sick[0]
    if name in ("gates", "mask", "grid"):
        assert (abs(well) < 1e-6).all() and sick[-1] > 0.1


def test_numbers_beside_the_pictures_are_the_closed_forms():
    well, sick = np.array(pictures.variance().numbers)
    np.testing.assert_allclose(well, 1, atol=0.2)  # 576 pixels: four standard errors
    np.testing.assert_allclose(sick, well / np.array([1, 2, 5, 10, 20, 50]), rtol=1e-4)
    ran = np.array(pictures.paper().numbers)
    np.testing.assert_allclose(ran, [(12 - np.arange(0, 12, 2)) / 12, np.ones(6)])
