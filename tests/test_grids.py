"""Which steps are visited: the published rule written down again, and what every grid must obey."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dit_edu.grids import FLOW_GRIDS, GRIDS, flow_grid, respaced, timestep_grid
from dit_edu.schedules import cosine_betas, linear_betas


def published(num_timesteps: int, text: str) -> set[int] | None:
    """The rule of the published code, from its documentation; None where it refuses.

    "ddimN": the smallest integer stride that makes N steps, from 0 on. Else each section, of length
    T // sections, the first T % sections of them one longer, is strided so that its first and last
    steps are kept, each position rounded.
    """
    if text[:4] == "ddim":
        wanted = int(text[4:])
        fitting = (set(range(0, num_timesteps, i)) for i in range(1, num_timesteps))
        return next((steps for steps in fitting if len(steps) == wanted), None)
    counts = [int(number) for number in text.split(",")]
    steps, first = set(), 0
    for index, count in enumerate(counts):
        length = num_timesteps // len(counts) + (index < num_timesteps % len(counts))
        if length < count:
            return None
        stride = 1 if count == 1 else (length - 1) / (count - 1)
        position = 0.0
        for _ in range(count):
            steps.add(first + round(position))
            position += stride
        first += length
    return steps


@pytest.mark.parametrize("text", ["50", "ddim50", "10,10,10", "250", "ddim25", "1,1,100", "1000"])
def test_the_well_known_texts(text):
    assert set(respaced(1000, text).tolist()) == published(1000, text)


def test_what_the_texts_look_like():
    assert respaced(1000, "50")[[0, -1]].tolist() == [999, 0]
    assert respaced(1000, "ddim50")[[0, 1, -1]].tolist() == [980, 960, 0]  # never sees t = 999
    assert respaced(300, "10,15,20")[[0, -1]].tolist() == [299, 0]
    assert respaced(1000, "50").tolist() == timestep_grid(1000, 50).tolist()
    assert timestep_grid(1000, "ddim50").tolist() == respaced(1000, "ddim50").tolist()


@given(num=st.integers(2, 1100), counts=st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_sections_follow_the_published_rule(num, counts):
    text = ",".join(map(str, counts))
    wanted = published(num, text)
    if wanted is None:
        with pytest.raises(ValueError, match="exceeds the process"):
            respaced(num, text)
    else:
        got = respaced(num, text)
        assert set(got.tolist()) == wanted
        assert (got[:-1] > got[1:]).all()


@given(num=st.integers(2, 1100), steps=st.integers(1, 200))
def test_ddim_strides_follow_the_published_rule(num, steps):
    wanted = published(num, f"ddim{steps}")
    if wanted is None and steps > 1:
        with pytest.raises(ValueError, match="no stride"):
            respaced(num, f"ddim{steps}")
    else:  # one step only, which the published loop ends too early to find, is t = 0
        assert set(respaced(num, f"ddim{steps}").tolist()) == (wanted or {0})


@given(num=st.integers(1, 1200), data=st.data(), kind=st.sampled_from(GRIDS))
def test_grids_descend_from_noise_to_clean(num, data, kind):
    """For any betas of one's own too."""
    steps = data.draw(st.integers(1, num))
    seed = data.draw(st.integers(0, 9))
    betas = torch.rand(num, generator=torch.Generator().manual_seed(seed)).clamp(1e-4, 0.999)
    grid = timestep_grid(num, steps, kind, betas)
    assert grid.dtype == torch.int64
    assert len(grid) == steps
    assert grid[0] == num - 1
    assert (grid[:-1] > grid[1:]).all()
    assert grid[-1] == 0 or steps == 1


def test_strides_of_the_beta_grid_are_as_long_as_beta_is_large():
    for betas, rtol in ((linear_betas(1000), 0.15), (cosine_betas(1000), 0.35)):
        up = timestep_grid(1000, 40, "beta", betas).flip(0)
        stride = up[1:] - up[:-1]
        assert (stride[1:] >= stride[:-1] - 1).all()
        long = stride >= 8  # where rounding to whole steps no longer matters
        middle = (up[1:] + up[:-1]) // 2
        ratio = (stride / betas[middle])[long]
        assert (ratio / ratio.median() - 1).abs().max() < rtol


def test_equal_betas_make_even_strides():
    flat = timestep_grid(1000, 38, "beta", torch.full((1000,), 0.01))
    assert flat.tolist() == timestep_grid(1000, 38).tolist()


@pytest.mark.parametrize("kind", FLOW_GRIDS)
def test_times_of_a_flow(kind):
    tau = flow_grid(10, kind)
    assert tau.dtype == torch.float64
    assert len(tau) == 11
    assert (tau[0], tau[-1]) == (1, 0)
    assert (tau[:-1] > tau[1:]).all()
    strides = tau[:-1] - tau[1:]
    want = torch.full((10,), 0.1) if kind == "uniform" else torch.linspace(0.19, 0.01, 10)
    torch.testing.assert_close(strides, want.double(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: timestep_grid(1000, 0), ValueError, "steps=0"),
        (lambda: timestep_grid(1000, -5), ValueError, "steps=-5"),
        (lambda: timestep_grid(1000, 1001), ValueError, "steps=1001 exceeds .*1 to 1000"),
        (lambda: timestep_grid(1000, 10.0), TypeError, "steps=10.0"),
        (lambda: timestep_grid(1000, True), TypeError, "steps=True"),
        (lambda: timestep_grid(1000, 10, "unifrom"), ValueError, "Did you mean 'uniform'"),
        (lambda: timestep_grid(1000, 10, "beta"), ValueError, r"betas .*\(1000,\)"),
        (lambda: timestep_grid(1000, 10, "beta", torch.ones(5)), ValueError, r"\(5,\)"),
        (lambda: timestep_grid(1000, "10,10", "quadratic"), ValueError, "steps='10,10'"),
        (lambda: respaced(1000, "ten"), ValueError, "steps='ten'; allowed: such as '50'"),
        (lambda: respaced(1000, ""), ValueError, "steps=''"),
        (lambda: respaced(1000, "ddim"), ValueError, "steps='ddim'"),
        (lambda: respaced(1000, "ddim5,5"), ValueError, "steps='ddim5,5'"),
        (lambda: respaced(1000, "10,0"), ValueError, "steps='10,0'"),
        (lambda: respaced(100, "10,60"), ValueError, "60 of the 50 steps in section 2"),
        (lambda: respaced(1000, "ddim600"), ValueError, "no stride makes 600 of 1000"),
        (lambda: flow_grid(0), ValueError, "steps=0"),
        (lambda: flow_grid("10"), TypeError, "steps='10'"),
        (lambda: flow_grid(10, "beta"), ValueError, "grid='beta' is unknown; allowed: uniform"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
