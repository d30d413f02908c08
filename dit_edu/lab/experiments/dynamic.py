"""Layers chosen by the step: a race against models that choose nothing, and what skipping saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu.dispatch import run_masked, top_k
from dit_edu.hidit.dynamic import DynamicDiT
from dit_edu.lab.draw import Sampling
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.training import quality
from dit_edu.lab.profile import count, race
from dit_edu.lab.recipes import RECIPES, Recipe
from dit_edu.lab.train import train
from dit_edu.routing import balanced_losses, record_routing

MODEL: dict[str, Any] = {**RECIPES["digits-dit"].model, "depth": 6, "dropout": 0.0}
RECIPE: dict[str, Any] = {"steps": 800, "batch_size": 64, "lr": 8e-3, "warmup": 50}
KEEP, WEIGHT = 4, 0.01  # k of the 6 layers, and the weight of the balance loss
SHOWN = range(25, 1000, 50)  # the steps at which choices are kept


@dataclass(frozen=True)
class Variant(Recipe):
    """A recipe whose router is handicapped.

    Args:
        deaf: the router gets no gradient, and stays as it was drawn.
        head_start: what the logits of the first ``KEEP`` layers start with.
    """

    deaf: bool = False
    head_start: float = 0.0

    def build_model(self) -> nn.Module:
        """A fresh model, changed after it has drawn its start values."""
        model = super().build_model()
        if isinstance(model, DynamicDiT):
            model.router.requires_grad_(not self.deaf)
            model.router.linear.bias.data[:KEEP] = self.head_start
        return model


def recipe_of(setting: Mapping[str, Any]) -> Variant:
    """The recipe of a setting: its own model on top of what all share."""
    fields = {name: setting[name] for name in ("deaf", "head_start") if name in setting}
    return Variant(
        name="layers",
        kind=setting["kind"],
        model={**MODEL, **setting["model"]},
        **RECIPE,
        **fields,
    )


@torch.no_grad()
def choices(model: DynamicDiT) -> dict[str, Any]:
    """Which layers run at the steps ``SHOWN``, and with which probability: (steps, L) each."""
    t = torch.tensor(SHOWN)
    x = torch.zeros(len(t), model.in_channels, *model.input_size)
    with record_routing(model) as trace:
        model(x, t, torch.zeros_like(t))
    (decision,) = trace.decisions
    return {"chosen": decision.chosen.int().tolist(), "soft": plain(decision.soft.tolist(), 3)}


def race_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train, measure on the held-out digits, and count what runs."""
    recipe = recipe_of(setting)
    loss_fn = balanced_losses(setting["balance"]) if setting.get("balance") else None
    *_, last = train(recipe, seed=seed, device="cpu", loss_fn=loss_fn)
    model, one = last.ema, torch.zeros(1, dtype=torch.long)
    x = torch.zeros(1, model.in_channels, *model.input_size)
    return {
        **quality(model, recipe, Sampling(steps=10)),
        "params": sum(p.numel() for p in model.parameters()),
        "macs": count(model, x, one, one, repeats=0).macs,
        **(choices(model) if isinstance(model, DynamicDiT) else {}),
    }


# ---------------------------------------------------------------------- time


def masked(model: DynamicDiT, t: Tensor, emb: Tensor) -> list[Callable[[Tensor, Tensor], Tensor]]:
    """``layers`` as often published: every block runs, and a mask takes its part away."""
    chosen = top_k(model.router(emb), model.keep)  # (B, L)
    return [partial(run_masked, chosen[:, i], block) for i, block in enumerate(model.blocks)]


@torch.no_grad()
def cost_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Least seconds of a forward pass over those of a model that runs all layers, in turns.

    The seed numbers the repetitions.
    """
    torch.manual_seed(seed)
    sizes = {**MODEL, **setting["model"]}
    full, dense = DynamicDiT(keep=sizes["depth"], **sizes), DynamicDiT(keep=KEEP, **sizes)
    some = DynamicDiT(keep=KEEP, **sizes)
    nn.init.normal_(some.router.linear.weight, std=20.0)  # so that steps differ
    dense.load_state_dict(some.state_dict())
    dense.layers = partial(masked, dense)
    n = setting["batch"]
    x = torch.randn(n, some.in_channels, *some.input_size)
    t = torch.full((n,), 500) if setting["steps"] == "one" else torch.randint(1000, (n,))
    y = torch.zeros_like(t)
    models = {"all layers": full.eval(), "chosen": some.eval(), "masked": dense.eval()}
    best = race({name: partial(m, x, t, y) for name, m in models.items()}, setting["turns"])
    macs = {name: count(models[name], x, t, y, repeats=0).macs for name in models}
    return {
        name.replace(" ", "_"): {
            "seconds": plain(best[name], 6),
            "ratio": plain(best[name] / best["all layers"]),
            "macs_ratio": plain(macs[name] / macs["all layers"]),
        }
        for name in models
    }


def _routed(noise: float, **options: Any) -> dict[str, Any]:
    return {"kind": "DynamicDiT", "model": {"keep": KEEP, "noise": noise}, **options}


def _dense(depth: int) -> dict[str, Any]:
    return {"kind": "DiT", "model": {"depth": depth}}


EXPERIMENTS = (
    Experiment(
        name="layer-routing",
        about="Four of six layers, chosen by the step, against models of six and of four layers",
        settings={
            "6 layers": _dense(6),
            "4 layers": _dense(4),
            "router without gradient": _routed(0.0, deaf=True),
            "router": _routed(0.0),
            "router, noise": _routed(1.0),
            "router, noise and balance": _routed(1.0, balance=WEIGHT),
            "head start": _routed(0.0, head_start=5.0),
            "head start, noise and balance": _routed(1.0, head_start=5.0, balance=WEIGHT),
        },
        seeds=range(5),
        compute=race_cell,
    ),
    Experiment(
        name="layer-routing-cost",
        about="Time of a forward pass with four of six layers, over that with all",
        settings={
            f"{name}, batch {batch}, {steps} step{'s' * (steps == 'many')}": {
                "model": model,
                "batch": batch,
                "steps": steps,
                "turns": turns,
            }
            for name, model, turns in (
                ("16 tokens", {}, 100),
                ("256 tokens", {"input_size": 32, "hidden_size": 128}, 8),
            )
            for batch in (1, 16, 64 if name == "16 tokens" else 32)
            for steps in ("one", "many")[: 1 if batch == 1 else 2]
        },
        seeds=range(3),
        compute=cost_cell,
    ),
)
