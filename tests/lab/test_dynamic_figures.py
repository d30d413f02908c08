"""The figure and the race of the chapter on layers chosen by the step: what they show is so."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from dit_edu.hidit.dynamic import DynamicDiT
from dit_edu.lab.experiments import get_experiment, read, stale
from dit_edu.lab.experiments.dynamic import KEEP, MODEL, SHOWN, choices, masked, recipe_of
from dit_edu.lab.figures import layers_by_step
from dit_edu.lab.figures.dynamic import ROUTERS


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return recipe_of(get_experiment("layer-routing").settings[name]).build_model()


@pytest.mark.parametrize("name", ["layer-routing", "layer-routing-cost"])
def test_the_tables_are_whole(name):
    assert stale(get_experiment(name), read(name)) == []


def test_the_figure_shows_the_table():
    figure = layers_by_step()
    runs, thinks, losses = figure.panels
    chosen, soft = np.asarray(runs.values), np.asarray(thinks.values)
    assert (chosen.sum(2) == KEEP).all()  # layers by steps
    np.testing.assert_allclose(soft.sum(-1), 1, atol=0.01)
    order = [row["setting"] for row in read("layer-routing") if "chosen" in row["metrics"]]
    assert list(dict.fromkeys(order)) == list(ROUTERS)
    first = np.argsort(-soft[1, 0], axis=-1)[:, 0]  # the likeliest layer of a router runs
    assert (chosen[1, 0][first, np.arange(len(SHOWN))] == 1).all()
    routed, static = (np.asarray(line.y) for line in losses.lines)
    assert routed.shape == (6, 10) and (static == static[0]).all()
    table = read("layer-routing")
    mean = {
        name: np.mean([r["metrics"]["loss_by_bin"] for r in table if r["setting"] == name], axis=0)
        for name in ("6 layers", "router")
    }
    np.testing.assert_allclose(routed[1], mean["router"] / mean["6 layers"], rtol=1e-3)


def test_routed_models_cost_what_four_layers_cost():
    macs = {row["setting"]: row["metrics"]["macs"] for row in read("layer-routing")}
    router = MODEL["hidden_size"] * MODEL["depth"]
    assert all(macs[n] == macs["4 layers"] + router for n in macs if "layers" not in n)


def test_handicaps_are_what_they_say():
    deaf, ahead = build("router without gradient"), build("head start")
    assert not any(p.requires_grad for p in deaf.router.parameters())
    assert all(p.requires_grad for p in ahead.router.parameters())
    chosen = torch.tensor(choices(ahead)["chosen"])
    assert chosen[:, :KEEP].all() and not chosen[:, KEEP:].any()


def test_a_mask_says_the_same_as_a_choice():
    torch.manual_seed(0)
    model = DynamicDiT(keep=KEEP, **MODEL).eval()
    for p in model.parameters():
        p.data = p.data + 0.2 * torch.randn_like(p)
    x, t = torch.randn(5, 1, 8, 8), torch.arange(0, 1000, 200)
    want = model(x, t, t % 10)
    model.layers = partial(masked, model)
    torch.testing.assert_close(model(x, t, t % 10), want, rtol=1e-4, atol=1e-5)
