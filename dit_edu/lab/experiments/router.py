"""Routers on the condition: what steers them, and a race against models that decide nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu.dddit.diagnostics import sharp
from dit_edu.dddit.router import BudgetedLosses, Choice, decision_entropy
from dit_edu.dddit.switched import SwitchedDiT
from dit_edu.lab.data import digits
from dit_edu.lab.draw import Sampling
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.dynamic import MODEL, RECIPE
from dit_edu.lab.experiments.training import heldout_loss, quality
from dit_edu.lab.profile import count
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.train import train
from dit_edu.routing import record_routing

TARGET = 0.6  # λ, of the MACs of all branches
ENTROPY = 0.01  # the weight of the entropy in the sources, who subtract it
LEVELS = range(50, 1000, 100)  # the steps at which routers are asked
EVERY = 80  # updates between two looks at a router in training
THIN = 1.5  # r of a static model whose branches cost about λ of those with r = 4


class SoftGates(nn.Module):
    """Every unit runs, and its gate is its probability; in evaluation the choice is made hard."""

    def forward(self, logits: Tensor) -> Choice:
        """Logits (B, E) → a choice that is none."""
        soft, chosen = logits.sigmoid(), logits > 0
        if self.training:
            return Choice(chosen, soft, soft, heard=True)
        return Choice(chosen, chosen.to(soft), soft)


@dataclass(frozen=True)
class Variant(Recipe):
    """A recipe whose router is changed.

    Args:
        mixed: gates are probabilities, not choices, until the model is evaluated.
    """

    mixed: bool = False

    def build_model(self) -> nn.Module:
        """A fresh model, changed after it has drawn its start values."""
        model = super().build_model()
        if self.mixed:
            model.choice = SoftGates()
        return model


def recipe_of(setting: Mapping[str, Any]) -> Variant:
    """The recipe of a setting: its own model on top of what all share."""
    return Variant(
        name="switches",
        kind=setting["kind"],
        model={**MODEL, **setting["model"]},
        **RECIPE,
        mixed=setting.get("mixed", False),
    )


@torch.no_grad()
def asked(model: SwitchedDiT) -> dict[str, Any]:
    """What a router says of the steps ``LEVELS`` and all labels.

    Returns:
        ``runs`` and ``soft``, what runs and how probably, means over the labels, (steps, 2L); and
        ``executed`` and ``expected``, the shares of the branches' MACs.
    """
    t, y = torch.meshgrid(torch.tensor(LEVELS), torch.arange(model.num_classes), indexing="ij")
    choice = model.choose(model.t_embedder(t.flatten()) + model.y_embedder(y.flatten()))
    runs, soft = (
        plain(part.float().view(*t.shape, -1).mean(1).numpy().round(3))
        for part in (choice.chosen, choice.soft)
    )
    return {"runs": runs, "soft": soft, **_shares(model, choice)}


def _shares(model: SwitchedDiT, choice: Choice) -> dict[str, float]:
    """MACs that run, and those expected in training, over those of all branches."""
    macs = model.branch_macs().double()
    both = {"executed": choice.chosen, "expected": choice.soft}
    return {k: plain((v * macs).sum(-1).mean() / macs.sum(), 4) for k, v in both.items()}


@torch.no_grad()
def routing_on(model: SwitchedDiT, recipe: Recipe) -> dict[str, Any]:
    """What the router does on the held-out digits: cost, sharpness, and the loss as it trained.

    Costs are shares of the MACs of all branches.
    """
    process = recipe.process.build()
    with record_routing(model) as trace:
        heldout_loss(model, process)
    (decision,) = trace.decisions
    model.choice.train()  # as in training: noise, or gates that are not hard
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        as_trained = heldout_loss(model, process)
    model.choice.eval()
    said = asked(model)
    return {
        **_shares(model, Choice(decision.chosen, decision.soft, decision.soft)),
        "entropy": plain(decision_entropy(decision.soft)),
        "sharp": plain(sharp(decision.soft.numpy())),
        "loss_as_trained": plain(as_trained.mean(), 6),
        "runs": said["runs"],
        "soft": said["soft"],
    }


def race_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train, measure on the held-out digits, and count what runs.

    ``macs`` are those of an image: with a router, on average over the held-out images and steps.
    """
    recipe = recipe_of(setting)
    routed = setting["kind"] == "SwitchedDiT"
    loss_fn = BudgetedLosses(TARGET, **setting["steer"]) if "steer" in setting else None
    history = []
    for step in train(recipe, seed=seed, device="cpu", loss_fn=loss_fn, data=digits("train")):
        if routed and step.step % EVERY == 0:
            history.append({"update": step.step, **asked(step.ema)})
    model, one = step.ema, torch.zeros(1, dtype=torch.long)
    x = torch.zeros(1, model.in_channels, *model.input_size)
    macs = count(model, x, one, one, repeats=0).macs
    found = {
        **quality(model, recipe, Sampling(steps=10)),
        "params": sum(p.numel() for p in model.parameters()),
    }
    if not routed:
        return {**found, "macs": macs}
    found |= routing_on(model, recipe)
    with record_routing(model) as trace:
        model(x, one, one)
    floor = macs - int(trace.decisions[0].executed().sum())  # what runs in any case
    branches = int(model.branch_macs().sum())
    return {**found, "macs": round(floor + found["executed"] * branches), "history": history}


def _routed(model: Mapping[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """A setting: a model with switches, steered to the budget."""
    steer = {"entropy": options.pop("entropy", ENTROPY), "ramp": options.pop("ramp", 200)}
    return {"kind": "SwitchedDiT", "model": model or {}, "steer": steer, **options}


EXPERIMENTS = (
    Experiment(
        name="router",
        about="Twelve branches switched by a router to 60 % of their MACs, against a thin model",
        settings={
            "thin": {"kind": "DiT", "model": {"mlp_ratio": THIN}},
            "router": _routed(),
            "no entropy": _routed(entropy=0.0),
            "sources' entropy": _routed(entropy=-ENTROPY),
            "no ramp": _routed(ramp=0),
            "silent": _routed({"heard": False}),
            "mixture": _routed(mixed=True),
        },
        seeds=range(3),
        compute=race_cell,
    ),
)
