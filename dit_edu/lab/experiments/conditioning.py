"""The chapter on conditioning: a race of the kinds of blocks, and what wrong waves cost.

Each variant gets the learning rate that suits it, chosen on a fold of the training half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu.conditioning import BLOCKS, TimestepEmbedder
from dit_edu.dit import DiT
from dit_edu.lab.data import digits, folds
from dit_edu.lab.draw import Sampling
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.training import BASE, heldout_loss, quality
from dit_edu.lab.profile import count
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.train import run

# ---------------------------------------------------------------------- start values


def _random(model: DiT) -> None:
    """Forget the zeros: the layers that modulate start like any other linear map."""
    for block in model.blocks:
        nn.init.xavier_uniform_(block.adaLN_modulation[-1].weight)


def _open(model: DiT) -> None:
    """All as published, but the gates are 1: what the Transformer's own block has."""
    for block in model.blocks:
        bias = block.adaLN_modulation[-1].bias.data.view(6, -1)  # (6D,) -> (6, D)
        bias[[2, 5]] = 1.0


def _one_for_all(model: DiT) -> None:
    """adaLN-Zero with a single layer for all blocks: adaLN-single without tables, from zero."""
    nn.init.zeros_(model.share[-1].weight)
    for block in model.blocks:
        nn.init.zeros_(block.adaLN_modulation.table)
        block.adaLN_modulation.table.requires_grad_(False)


#: What is done to a fresh model, by name.
START: Mapping[str, Callable[[DiT], None]] = {
    "published": lambda model: None,
    "random": _random,
    "open": _open,
    "one for all": _one_for_all,
}

# ---------------------------------------------------------------------- waves


#: Frequencies in radians per step, of k/d: as published, and with one fault or more.
FREQUENCIES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "published": lambda part: 10000 ** (-2 * part),
    "factor 2 missing": lambda part: 10 ** (-4 * part),
    "as printed": lambda part: 10 ** (4 * part),
}


def frequencies(name: str, dim: int = 256) -> Tensor:
    """ω_k for k = 0 … dim/2 - 1, (dim/2,) float64, by a key of ``FREQUENCIES``."""
    return FREQUENCIES[name](torch.arange(dim // 2, dtype=torch.float64) / dim)


def _cos_sin(name: str) -> Callable[[Tensor, int], Tensor]:
    def embed(t: Tensor, dim: int) -> Tensor:
        angles = t.double().unsqueeze(1) * frequencies(name, dim)  # (B, dim/2)
        return torch.cat([angles.cos(), angles.sin()], dim=1).float()  # (B, dim)

    return embed


def _summed(t: Tensor, dim: int) -> Tensor:
    """The sum of all sines and that of all cosines: two numbers, repeated."""
    cos, sin = WAVES["as printed"](t, dim).view(-1, 2, dim // 2).sum(2, keepdim=True).unbind(1)
    return torch.cat([cos, sin], dim=1).repeat(1, dim // 2)  # (B, 2) -> (B, dim)


def _number(t: Tensor, dim: int) -> Tensor:
    """No waves: t itself, scaled to [-1, 1]."""
    return (t.float() / 500 - 1).unsqueeze(1).expand(-1, dim)  # (B, dim)


#: How a step can be shown to the embedder's MLP, by name: (B,) and d → (B, d).
WAVES: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "published": TimestepEmbedder.timestep_embedding,
    "factor 2 missing": _cos_sin("factor 2 missing"),
    "as printed": _cos_sin("as printed"),
    "as printed, summed": _summed,
    "no waves": _number,
    "no step": lambda t, dim: torch.zeros(len(t), dim),
}

# ---------------------------------------------------------------------- cells


@dataclass(frozen=True)
class Variant(Recipe):
    """A recipe whose model starts from other values, or is shown the step in another way.

    Args:
        values: that it starts from, a key of ``START``.
        waves: a key of ``WAVES``.
    """

    values: str = "published"
    waves: str = "published"

    def build_model(self) -> nn.Module:
        """A fresh model, changed after it has drawn its start values."""
        model = super().build_model()
        START[self.values](model)
        model.t_embedder.timestep_embedding = WAVES[self.waves]
        return model


def variant(setting: Mapping[str, Any]) -> Variant:
    """The recipe of a setting: the small recipe of the chapter on training, and what it changes."""
    fields = {**BASE, "betas": tuple(BASE["betas"]), **setting}
    fields |= {"model": {**BASE["model"], **setting["model"]}}
    return Variant(values=fields.pop("start", "published"), **fields)


def fold_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train on a half of the training half; the loss on its other half. ``seed`` is the fold's."""
    images, labels = digits("train")
    fit, judge = folds(labels, k=2)[seed]
    recipe = variant(setting)
    part = images[fit], labels[fit]
    model = run(recipe, progress=False, seed=seed, device="cpu", data=part).model
    loss = heldout_loss(model, recipe.process.build(), data=(images[judge], labels[judge]))
    return {"loss": plain(loss.mean(), 6)}


def race_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train, and measure on the held-out digits: loss, samples of 10 DDIM steps, cost."""
    recipe = variant(setting)
    model = run(recipe, progress=False, seed=seed, device="cpu").model
    one = torch.zeros(1, dtype=torch.long)
    cost = count(model, torch.zeros(1, model.in_channels, *model.input_size), one, one, repeats=0)
    return {
        **quality(model, recipe, Sampling(steps=10)),
        "params": sum(p.numel() for p in recipe.build_model().parameters() if p.requires_grad),
        "macs": cost.macs,
    }


# ---------------------------------------------------------------------- the experiments


def _kind(name: str, start: str = "published", **model: Any) -> dict[str, Any]:
    return {"model": {"conditioning": name, **model}, "start": start}


#: The six kinds, then what separates their start values from their parameters.
KINDS = {
    **{name: _kind(name) for name in BLOCKS},
    "adaln-zero, random start": _kind("adaln-zero", "random"),
    "adaln-zero, gates open": _kind("adaln-zero", "open"),
    "adaln-zero, one for all": _kind("adaln-single", "one for all"),
    "adaln, 18 D²": _kind("adaln", mlp_ratio=5.0),
}
RATES = (0.004, 0.008, 0.016, 0.032, 0.064)
#: Of each, the rate with the lowest loss on the fold (``results/conditioning-lr.json``).
BEST = {
    "additive": 0.016,
    "in-context": 0.016,
    "cross-attention": 0.016,
    "adaln": 0.016,
    "adaln-zero": 0.032,
    "adaln-single": 0.032,
    "adaln-zero, random start": 0.016,
    "adaln-zero, gates open": 0.016,
    "adaln-zero, one for all": 0.032,
    "adaln, 18 D²": 0.016,
}

EXPERIMENTS = (
    Experiment(
        name="conditioning-lr",
        about="The learning rate of each kind of conditioning, by a fold of the training half",
        settings={
            f"{name}, lr {lr}": {**kind, "lr": lr} for name, kind in KINDS.items() for lr in RATES
        },
        seeds=range(1),
        compute=fold_cell,
    ),
    Experiment(
        name="conditioning",
        about="A race of the kinds of conditioning: held-out loss, samples, parameters and MACs",
        settings={name: {**kind, "lr": BEST[name]} for name, kind in KINDS.items()},
        seeds=range(5),
        compute=race_cell,
    ),
    Experiment(
        name="conditioning-waves",
        about="How the step is shown to a model with adaLN-Zero: held-out loss and samples",
        settings={name: {**_kind("adaln-zero"), "waves": name} for name in WAVES},
        seeds=range(5),
        compute=race_cell,
    ),
)
