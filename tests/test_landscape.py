"""Token density: what is counted is what runs, dense bands are the plain DiT, images stay apart."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_edu.conditioning import BLOCKS
from dit_edu.dit import DiT
from dit_edu.lab.profile import count
from dit_edu.landscape import TokenDensityDiT, copies, means
from dit_edu.routing import record_routing
from dit_edu.scaling import Architecture

MODEL = dict(
    input_size=16, patch_size=2, in_channels=3, hidden_size=32, depth=4, num_heads=4,
    num_classes=9, learn_sigma=False,
)  # fmt: skip
DENSITY = ((0, 1), (300, 2), (700, 4))


def random_start(**options) -> TokenDensityDiT:
    torch.manual_seed(0)
    model = TokenDensityDiT(**{**MODEL, "density": DENSITY, **options})
    for p in model.parameters():
        p.data = p.data + 0.2 * torch.randn_like(p)
    return model.double().eval()


started = cache(random_start)


def inputs(t: list[float]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(len(t), 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return x.double(), torch.tensor(t), torch.arange(len(t)) % 10


def plain_twin(model: TokenDensityDiT) -> DiT:
    twin = DiT(**MODEL).double().eval()
    twin.load_state_dict(model.state_dict())
    return twin


@torch.no_grad()
def test_where_all_tokens_are_kept_it_is_the_plain_model():
    model = random_start()
    batch = inputs([0, 150, 299])
    torch.testing.assert_close(model(*batch), plain_twin(model)(*batch), atol=1e-12, rtol=0)
    noisy = inputs([300, 999])
    assert (model(*noisy) - plain_twin(model)(*noisy)).abs().max() > 1e-3


@torch.no_grad()
def test_a_fresh_model_is_the_plain_one_at_every_step():
    torch.manual_seed(3)
    model = TokenDensityDiT(**MODEL, density=DENSITY).eval()
    batch = [part.float() if part.is_floating_point() else part for part in inputs([10, 500, 900])]
    twin = DiT(**MODEL).eval()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(model(*batch), twin(*batch))


@settings(max_examples=15)
@given(t=st.lists(st.integers(0, 999), min_size=2, max_size=4))
def test_no_image_changes_another(t):
    model = started()
    x, steps, y = inputs(t)
    with torch.no_grad():
        together = model(x, steps, y)
        alone = torch.cat(
            [model(x[i : i + 1], steps[i : i + 1], y[i : i + 1]) for i in range(len(t))]
        )
    torch.testing.assert_close(together, alone, atol=1e-10, rtol=0)


@torch.no_grad()
def test_against_a_loop_over_windows():
    """One sparse block, written out for each window of 4 x 4 tokens with the block's own parts."""
    model = random_start()
    block = model.blocks[1]
    x = torch.randn(2, 64, 32, dtype=torch.float64)
    c = torch.randn(2, 32, dtype=torch.float64)
    few = torch.zeros(2, 4, 32, dtype=torch.float64)
    windows = [
        [r * 8 + q for r in range(4 * i, 4 * i + 4) for q in range(4 * j, 4 * j + 4)]
        for i in range(2)
        for j in range(2)
    ]
    for k, places in enumerate(windows):
        few[:, k] = x[:, places].mean(1)
    change, want = block(few, c) - few, x.clone()
    for k, places in enumerate(windows):
        want[:, places] += change[:, k : k + 1]
    row = model.rows_at(torch.tensor([999]))
    assert row.tolist() == [2]
    got = model.layers(torch.tensor([999, 999]), c)[1](x, c)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("t", "window"), [(0, 1), (299.5, 1), (300, 2), (699.9, 2), (700, 4)])
def test_multiply_adds_are_counted_and_derived(t, window):
    model = random_start().float()
    x, _, y = inputs([0, 0])
    steps = torch.tensor([t, t])
    counted = count(model, x.float(), steps, y, repeats=0).macs / 2
    few = 64 // window**2
    block = 12 * 32**2 * few + 2 * 32 * few**2 + 6 * 32**2
    sizes = Architecture.of(MODEL)
    derived = sum(sizes.macs().values()) - 2 * (
        12 * 32**2 * 64 + 2 * 32 * 64**2 + 6 * 32**2 - block
    )
    assert counted == derived and model.sparse_macs(window) == block
    with record_routing(model) as trace:
        model(x.float(), steps, y)
    assert [int(d.executed().sum(1)[0]) for d in trace.decisions] == [block, block]


def test_means_and_copies():
    x = torch.arange(16.0).view(1, 16, 1)
    assert means(x, (4, 4), 4).item() == 7.5
    rows = [[2.5, 2.5, 4.5, 4.5]] * 2 + [[10.5, 10.5, 12.5, 12.5]] * 2
    assert copies(means(x, (4, 4)), (4, 4)).view(4, 4).tolist() == rows
    y = torch.randn(2, 8, 3)  # a grid that is not square
    assert torch.allclose(means(copies(y, (8, 4), 2), (8, 4), 2), y)


def test_gradients_reach_every_weight():
    model = random_start()
    x, t, y = inputs([100, 500, 900])
    model.train()(x, t, y).square().sum().backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("kind", [k for k in BLOCKS if k != "in-context"])
def test_other_conditionings_work_too(kind):
    model = TokenDensityDiT(**MODEL, density=DENSITY, conditioning=kind).eval()
    x, t, y = inputs([100, 500, 900])
    assert model(x.float(), t, y).shape == x.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": ()}, r"density starts at steps \[\]; allowed: from 0 on, increasing"),
        ({"density": ((10, 1),)}, r"density starts at steps \[10\]"),
        ({"density": ((0, 1), (500, 2), (500, 4))}, r"\[0, 500, 500\]"),
        ({"density": ((0, 3),)}, r"window=3 on a grid of 8x8; allowed: a divisor"),
        ({"density": ((0, 0),)}, r"window=0"),
        ({"dense_first": 2, "dense_last": 2}, r"dense_first=2 and dense_last=2 of 4 blocks"),
        ({"dense_first": -1}, r"dense_first=-1"),
        ({"conditioning": "in-context"}, r"conditioning='in-context'"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TokenDensityDiT(**{**MODEL, "density": DENSITY, **options})
