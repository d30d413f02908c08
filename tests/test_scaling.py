"""Closed forms against counted models, the paper's tables, and torch's own count of memory."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dit_edu.conditioning import BLOCKS
from dit_edu.dit import PRESETS, DiT
from dit_edu.lab.profile import count
from dit_edu.scaling import CONDITIONING, Architecture, sampling_cost, training_macs

# Parameters in millions and GMACs (the paper's "Gflops"): Peebles & Xie 2023, table 4.
PUBLISHED = {
    "DiT-S/8": (33, 0.36), "DiT-S/4": (33, 1.41), "DiT-S/2": (33, 6.06),
    "DiT-B/8": (131, 1.42), "DiT-B/4": (130, 5.56), "DiT-B/2": (130, 23.01),
    "DiT-L/8": (459, 5.01), "DiT-L/4": (458, 19.70), "DiT-L/2": (458, 80.71),
    "DiT-XL/8": (676, 7.39), "DiT-XL/4": (675, 29.05), "DiT-XL/2": (675, 118.64),
}  # fmt: skip
# The same of DiT-XL/2 by its conditioning: figure 5 and table 4 there.
ABLATION = {
    "in-context": (449, 119.37), "cross-attention": (598, 137.62),
    "adaln": (600, 118.56), "adaln-zero": (675, 118.64),
}  # fmt: skip


def total(parts: dict[str, int]) -> int:
    return sum(parts.values())


def counted(model: Architecture) -> tuple[int, int]:
    """Trained parameters and MACs of the network itself, on the meta device."""
    with torch.device("meta"):
        net = DiT(**asdict(model))
        y = torch.zeros(1, dtype=torch.long)
        macs = count(net, torch.empty(1, model.in_channels, *model.size), y, y, repeats=0).macs
    return sum(p.numel() for p in net.parameters() if p.requires_grad), macs


@st.composite
def architectures(draw) -> Architecture:
    p, heads = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return Architecture(
        input_size=(p * draw(st.integers(1, 6)), p * draw(st.integers(1, 6))),
        patch_size=p,
        in_channels=draw(st.integers(1, 4)),
        hidden_size=4 * heads * draw(st.integers(1, 6)),
        depth=draw(st.integers(1, 3)),
        num_heads=heads,
        mlp_ratio=draw(st.sampled_from([0.5, 1.0, 2.7, 4.0])),
        class_dropout_prob=draw(st.sampled_from([0.0, 0.1])),
        num_classes=draw(st.integers(1, 20)),
        learn_sigma=draw(st.booleans()),
        conditioning=draw(st.sampled_from(sorted(CONDITIONING))),
        positions=draw(st.sampled_from(["sincos", "learned", "none"])),
    )


@settings(max_examples=30, deadline=None)
@given(architectures())
def test_formulas_equal_the_counts_of_any_model(model):
    assert (total(model.params()), total(model.macs())) == counted(model)


@pytest.mark.parametrize("name", PRESETS)
def test_formulas_give_the_papers_table(name):
    model = Architecture.from_preset(name)
    millions, gmacs = PUBLISHED[name]
    assert round(total(model.params()) / 1e6) == millions
    assert total(model.macs()) / 1e9 == pytest.approx(gmacs, abs=max(0.005, gmacs / 1000) + 1e-9)


@pytest.mark.parametrize("name", ["DiT-S/8", "DiT-XL/2"])
def test_formulas_equal_the_counts_of_published_models(name):
    model = Architecture.from_preset(name)
    assert (total(model.params()), total(model.macs())) == counted(model)


@pytest.mark.parametrize("name", ABLATION)
def test_the_papers_table_of_conditioning(name):
    assert CONDITIONING.keys() == BLOCKS.keys()
    millions, gmacs = ABLATION[name]
    model = Architecture(conditioning=name)
    assert total(model.params()) / 1e6 == pytest.approx(millions, abs=0.6)
    assert total(model.macs()) / 1e9 == pytest.approx(gmacs, abs=0.02)


def test_resolutions():
    """The paper's 524.6 at 512 px; the share of the pairs; and where pairs cost half of a block."""
    for side, gmacs, share in ((32, 118.62, 0.0356), (64, 524.54, 0.1290), (128, 2909.22, 0.3720)):
        macs = Architecture(input_size=side).macs()
        assert total(macs) / 1e9 == pytest.approx(gmacs, abs=0.005)
        assert macs["pairs"] / total(macs) == pytest.approx(share, abs=5e-5)
    narrow = Architecture(input_size=(24, 16), patch_size=1, hidden_size=64, num_heads=4)
    assert narrow.crossover == narrow.tokens == 6 * 64
    assert narrow.macs()["pairs"] == narrow.macs()["tokens"]


@settings(max_examples=12, deadline=None)
@given(architectures(), st.integers(1, 3))
def test_activations_are_those_that_live_on_a_cpu(model, batch):
    """Within 1.25 for any block, and within 2 % for adaLN-Zero and tokens wider than patches."""
    assume(model.tokens >= 4)
    model = replace(model, hidden_size=16 * model.hidden_size)
    net = DiT(**asdict(model))
    y = torch.zeros(batch, dtype=torch.long)
    x = torch.randn(batch, model.in_channels, *model.size)
    peak = count(net, x, y, y, repeats=1).peak_memory
    bill = sampling_cost(model, batch=batch)
    assert 1 / 1.25 < peak / bill.activations < 1.25
    assert bill.weights == 4 * sum(p.numel() for p in net.parameters())
    if (
        model.conditioning == "adaln-zero"
        and model.tokens >= 16
        and model.hidden_size >= 8 * model.patch_out
    ):
        assert peak == pytest.approx(bill.activations, rel=0.02)


def test_a_bill_adds_up():
    model = Architecture.from_preset("DiT-S/4")
    plain, guided = sampling_cost(model, steps=50), sampling_cost(model, steps=50, scale=1.5)
    assert plain.passes == 50 and guided.passes == 100
    assert guided.macs == 2 * plain.macs == 100 * total(model.macs())
    assert guided.activations == 2 * plain.activations
    assert plain.memory == plain.weights + plain.activations
    half = sampling_cost(model, steps=50, batch=8, bytes_per_number=2)
    assert (half.weights, half.activations) == (plain.weights / 2, 4 * plain.activations)
    assert training_macs(model, steps=10, batch=4) == 120 * total(model.macs())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"patch_size": 3}, ValueError, "p=3 does not divide the image of 32x32"),
        ({"input_size": 0}, ValueError, "input_size=0"),
        ({"input_size": (32, 2.5)}, TypeError, "input_size=2.5"),
        ({"hidden_size": 0}, ValueError, "hidden_size=0 must be an int >= 1"),
        ({"hidden_size": 70}, ValueError, "num_heads=16 does not divide hidden_size=70"),
        ({"depth": 1.5}, TypeError, "depth=1.5"),
        ({"mlp_ratio": 0.0}, ValueError, "mlp_ratio=0.0"),
        ({"conditioning": "adaln-zreo"}, ValueError, "Did you mean 'adaln-zero'"),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        Architecture(**changes)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps=0"),
        ({"batch": 2.0}, TypeError, "batch=2.0"),
        ({"scale": float("inf")}, ValueError, "scale=inf"),
        ({"bytes_per_number": 0}, ValueError, "bytes_per_number=0"),
    ],
)
def test_options_that_make_no_sense_are_named(options, error, message):
    with pytest.raises(error, match=message):
        sampling_cost(Architecture(), **options)
    with pytest.raises(ValueError, match="steps=0"):
        training_macs(Architecture(), steps=0, batch=1)
    with pytest.raises(ValueError, match="Did you mean 'DiT-XL/2'"):
        Architecture.from_preset("DiT-XXL/2")
