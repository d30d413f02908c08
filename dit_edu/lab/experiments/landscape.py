"""The landscape: ways to make a Diffusion Transformer cheaper, on one stage, by one measure."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu.dddit.baselines import at_macs
from dit_edu.dddit.exits import exit_losses
from dit_edu.dddit.model import DDDiT
from dit_edu.dddit.router import BudgetedLosses
from dit_edu.hidit.deployment import quantized, stored_bytes
from dit_edu.interpolant import Interpolant
from dit_edu.lab.draw import Sampling, cycle_labels, draw
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.frontier import exit_at, target_of
from dit_edu.lab.experiments.hidit import hidit, seconds
from dit_edu.lab.experiments.modes import path_at
from dit_edu.lab.experiments.multiscale import (
    MODEL,
    SAMPLING,
    dit,
    fitted,
    half,
    judged,
    recipe_of,
)
from dit_edu.lab.profile import count
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.train import LossFn, train
from dit_edu.scaling import Architecture

SHARE = 0.6  # of the plain model's MACs, at which those meet that can be steered
RAMP = 75  # updates in which a budget is lowered
STEPS = SAMPLING.steps
BATCHES, TURNS = (1, 16), 4


@cache
def dense(seed: int) -> nn.Module:
    """The plain model, trained; some ways ask for no more."""
    return fitted(recipe_of(dit()), seed, half("train"))


def full_macs() -> int:
    """Multiply-adds of a pass of the plain model, for one image."""
    return sum(Architecture.of(MODEL).macs().values())


def trained(setting: Mapping[str, Any], seed: int) -> tuple[nn.Module, Recipe]:
    """The model of a setting, and its recipe."""
    recipe = recipe_of({"kind": setting["kind"], "model": setting["model"]})
    if setting["way"] != "trained":
        return made_of(dense(seed), setting, recipe), recipe
    loss_fn: LossFn | None = None
    if setting["kind"] == "ExitDiT":
        loss_fn = exit_losses
    elif setting["kind"] == "DDDiT" and "table" not in setting["model"]:
        with torch.device("meta"):  # its sizes are all that is asked for
            sizes = recipe.build_model()
        loss_fn = BudgetedLosses(target_of(sizes, SHARE, full_macs()), ramp=RAMP)
    *_, last = train(recipe, seed=seed, device="cpu", data=half("train"), loss_fn=loss_fn)
    if setting["kind"] == "ExitDiT":
        images, labels = half("train")
        seen = images[:256], labels[:256]
        last.ema.threshold = exit_at(last.ema, recipe, SHARE, full_macs(), seen)
    return last.ema, recipe


def made_of(model: nn.Module, setting: Mapping[str, Any], recipe: Recipe) -> nn.Module:
    """What a setting makes of the trained plain model, without training."""
    if setting["way"] == "int8":
        return quantized(model, "dynamic")
    if setting["kind"] == "CachedDiT":
        cached = recipe.build_model().eval()
        cached.load_state_dict(model.state_dict())
        return cached
    return model


class Walk(nn.Module):
    """Drawing images as one module, to be counted and timed as a whole.

    Args:
        model, process, sampling: as for :func:`~dit_edu.lab.draw.draw`.
    """

    def __init__(self, model: nn.Module, process: Interpolant, sampling: Sampling) -> None:
        super().__init__()
        self.model, self.process, self.sampling = model, process, sampling

    def forward(self, labels: Tensor) -> Tensor:
        """(n,) → (n, C, H, W)."""
        return draw(self.model, self.process, labels, self.sampling)


def cost(model: nn.Module, recipe: Recipe, sampling: Sampling, seed: int) -> dict[str, Any]:
    """MACs and time of drawing whole images, over those of the plain model."""
    process, base = recipe.process.build(), dense(seed)
    own, other = Walk(model, process, sampling), Walk(base, process, SAMPLING)
    found = {}
    for n in BATCHES:
        labels = cycle_labels(n, base.num_classes)
        took = seconds({"own": partial(own, labels), "plain": partial(other, labels)}, TURNS)
        found[f"seconds_share_{n}"] = plain(took["own"] / took["plain"])
    macs = [count(walk, labels, repeats=0).macs for walk in (own, other)]
    return {**found, "macs_share": plain(macs[0] / macs[1])}


def landscape_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train or convert as the setting says; quality on the held-out half, size, MACs, time."""
    model, recipe = trained(setting, seed)
    sampling = Sampling(steps=setting["steps"], scale=SAMPLING.scale)
    found = judged(model, recipe, seed, half("train"), half("heldout"), sampling)
    found |= cost(model, recipe, sampling, seed)
    if setting["way"] == "int8":  # integers are multiplied, and the counter knows floats
        found["macs_share"] = 1.0
    if isinstance(model, DDDiT):
        found["path"] = path_at(model)
    params = sum(p.numel() for p in model.parameters())
    return {**found, "params": params, "megabytes": plain(stored_bytes(model) / 1e6)}


def way(
    kind: str = "DiT", way: str = "trained", steps: int = STEPS, **model: Any
) -> dict[str, Any]:
    """A setting: a model that is trained, or a way to use the plain one; and steps of sampling."""
    return {"kind": kind, "way": way, "steps": steps, "model": model}


def _thin(**model: Any) -> float:
    return at_macs({**MODEL, **model}, SHARE * full_macs())["mlp_ratio"]


LANDSCAPE: dict[str, dict[str, Any]] = {
    "DiT": way(way="plain"),
    "DiT, thin": way(mlp_ratio=_thin()),
    "DiT, narrow": way(hidden_size=48, mlp_ratio=_thin(hidden_size=48)),
    "DiT, 2 blocks": way(depth=2),
    "DiT/4": way(patch_size=4),
    "HiDiT": way(**hidit()["model"], kind="HiDiT"),
    "token density": way("TokenDensityDiT", density=[[0, 1], [100, 2], [500, 4]]),
    "DDDiT": way("DDDiT", pace=4.0),
    "early exit": way("ExitDiT"),
    "INT8": way(way="int8"),
    "cache": way("CachedDiT", "plain", every=2),
    "6 steps": way(way="plain", steps=6),
}

EXPERIMENTS = (
    Experiment(
        name="landscape",
        about="Cheaper Diffusion Transformers on one stage: size, MACs and time of a walk, quality",
        settings=LANDSCAPE,
        seeds=range(3),
        compute=landscape_cell,
    ),
)
