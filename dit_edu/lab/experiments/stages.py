"""Training in stages and from a teacher, on the stage of the chapter on tokens of two sizes.

What is compared has cost the same: a budget of multiply-adds, that of 300 plain updates at p = 2,
is shared out among the stages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dit_edu.dit import DiT
from dit_edu.hidit.distill import distilled_losses, unexplained_macs
from dit_edu.hidit.progressive import carry
from dit_edu.hidit.resolution import resized, shifted, window_losses
from dit_edu.lab.data import Labelled
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.multiscale import (
    MODEL,
    RECIPE,
    dit,
    half,
    judged,
    recipe_of,
)
from dit_edu.lab.experiments.scaling import counted
from dit_edu.lab.experiments.training import heldout_loss
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.train import LossFn, run, train

BACKWARD = 3  # an update costs three forward passes
SIZE = MODEL["input_size"]
GRID = [SIZE // 2, SIZE // 2]  # of the tokens at the end; every stage uses its coordinates
FEW = 25  # held-out images that a curve is drawn on
POINTS = 10  # of a curve, in each stage


def update_macs(recipe: Recipe) -> int:
    """Multiply-adds of one update."""
    return BACKWARD * recipe.batch_size * counted(recipe)["macs"]


@cache
def budget() -> int:
    """Multiply-adds of the plain training that all are compared with."""
    return RECIPE["steps"] * update_macs(recipe_of(dit()))


def found(model: nn.Module, recipe: Recipe, seed: int) -> dict[str, Any]:
    """What is measured of a trained model."""
    return judged(model, recipe, seed, half("train"), half("heldout"))


# ---------------------------------------------------------------------- what a stage sees


def _resized_losses(model, process, x0, t, y, noise) -> dict[str, Tensor]:
    """Small images; the mean of r² draws of noise, times r, is noise again."""
    size, r = model.input_size, x0.shape[-1] // model.input_size[-1]
    return process.losses(model, resized(x0, size), t, y, noise=r * resized(noise, size))


def _shifted_losses(model, process, x0, t, y, noise) -> dict[str, Tensor]:
    easier = shifted(process, x0.shape[-1] / model.input_size[-1])
    return _resized_losses(model, easier, x0, t, y, noise)


class View(NamedTuple):
    """What a stage sees of the images, and how its positions go on to all of them."""

    loss_fn: LossFn | None
    how: str


VIEWS: Mapping[str, View] = {
    "whole": View(None, "stretch"),
    "resized": View(_resized_losses, "stretch"),
    "resized, less noise": View(_shifted_losses, "stretch"),
    "windows": View(window_losses, "extend"),
}


def stage(share: float, view: str = "whole", **fields: Any) -> dict[str, Any]:
    """A stage that spends a share of the budget; ``fields`` are those of a recipe."""
    model = {**fields.pop("model", {})}
    if view != "windows":
        model["span"] = GRID
    return {"share": share, "view": view, "recipe": {**fields, "model": model}}


def stage_recipe(setting: Mapping[str, Any]) -> Recipe:
    """The recipe of a stage: as many updates as its share pays for, a sixth of them warm-up."""
    fields = {"warmup": 0, **setting["recipe"]}
    steps = round(setting["share"] * budget() / update_macs(recipe_of(fields)))
    warmup = round(setting.get("warmup", RECIPE["warmup"] / RECIPE["steps"]) * steps)
    return recipe_of({**fields, "steps": steps, "warmup": warmup})


# ---------------------------------------------------------------------- from stage to stage


def carried(model: DiT, recipe: Recipe, how: str) -> DiT:
    """A trained model as the start of the next stage's."""
    return carry(model, recipe.model["patch_size"]).at_size(recipe.model["input_size"], how)


def blocks_carried(model: DiT, recipe: Recipe, how: str) -> DiT:
    """The same, with a fresh embedding of patches and a fresh last map."""
    start, fresh = carried(model, recipe, how), recipe.build_model()
    start.x_embedder, start.final_layer.linear = fresh.x_embedder, fresh.final_layer.linear
    return start


def kernel_halved(model: DiT, recipe: Recipe, how: str) -> DiT:
    """As loud as the noise of a large patch, where the image is half as loud."""
    start = carried(model, recipe, how)
    start.x_embedder.proj.weight.data /= 2
    return start


HAND_OVERS: Mapping[str, Callable[[DiT, Recipe, str], DiT]] = {
    "same": lambda model, recipe, how: model,
    "carried": carried,
    "kernel halved": kernel_halved,
    "blocks alone": blocks_carried,
}


def curve_loss(model: DiT, process, how: str) -> float:
    """The loss on a few held-out images of full size."""
    images, labels = half("heldout")
    whole = model if model.input_size == (SIZE, SIZE) else model.at_size(SIZE, how)
    return float(heldout_loss(whole, process, data=(images[:FEW], labels[:FEW])).mean())


def in_stages(
    setting: Mapping[str, Any], seed: int, data: Labelled
) -> tuple[nn.Module, Recipe, list[list[float]]]:
    """Train stage by stage.

    Returns:
        The model, the recipe of the last stage, and the curve, of points (multiply-adds spent over
        the budget, loss). At a hand-over there are two.
    """
    model, how, spent, curve = None, "", 0.0, []
    for part in setting["stages"]:
        recipe, view = stage_recipe(part), VIEWS[part["view"]]
        process, start = recipe.process.build(), None
        marks = {round(k * recipe.steps / POINTS) for k in range(1, POINTS + 1)}
        if model is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                start = HAND_OVERS[setting["hand_over"]](model, recipe, how)
            curve.append([spent, curve_loss(start, process, view.how)])
        for step in train(
            recipe, seed=seed, device="cpu", data=data, loss_fn=view.loss_fn, start=start
        ):
            if step.step in marks:
                now = spent + step.step * update_macs(recipe) / budget()
                curve.append([now, curve_loss(step.ema, process, view.how)])
        model, spent, how = step.ema, now, view.how
    return model, recipe, curve


def stages_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train in stages, measure on the held-out half."""
    model, recipe, curve = in_stages(setting, seed, half("train"))
    recipes = [stage_recipe(part) for part in setting["stages"]]
    return {
        "updates": [r.steps for r in recipes],
        "epochs": plain([r.steps * r.batch_size / len(half("train")[0]) for r in recipes]),
        "macs": [r.steps * update_macs(r) for r in recipes],
        **found(model, recipe, seed),
        "curve": plain(curve, 5),
    }


# ---------------------------------------------------------------------- from a teacher

TEACHER = 600  # updates
STUDENT = {"depth": 2}


@cache
def teacher() -> nn.Module:
    """One for all students: the stage's plain model, trained twice as long."""
    recipe = recipe_of({**dit(), "steps": TEACHER})
    return run(recipe, seed=1000, device="cpu", data=half("train"), progress=False).model


#: Updates of a student alone that cost what 300 with a teacher do.
LONGER = 498
TOKENS = {"features": [1, 2], "feature_weight": 0.05}


def student(weight: float, steps: int = RECIPE["steps"], tokens: Any = None) -> dict[str, Any]:
    """A setting: a student of two blocks that hears a teacher of four with a weight."""
    return {"recipe": {"model": STUDENT, "steps": steps}, "weight": weight, "tokens": tokens or {}}


def distilled_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train a student, alone or with its teacher, measure on the held-out half."""
    recipe, loss_fn, spent = recipe_of(setting["recipe"]), None, 0
    spent = update_macs(recipe)
    if setting["weight"]:
        loss_fn = distilled_losses(teacher(), setting["weight"], **setting["tokens"])
        spent += recipe.batch_size * counted(recipe_of(dit()))["macs"]
        if setting["tokens"]:
            tokens = recipe.batch_size * GRID[0] * GRID[1]
            spent += unexplained_macs(tokens, MODEL["hidden_size"], MODEL["hidden_size"])
    arguments = dict(seed=seed, device="cpu", data=half("train"), loss_fn=loss_fn, progress=False)
    model = run(recipe, **arguments).model
    return {
        "training_macs": spent * recipe.steps,
        **found(model, recipe, seed),
    }


def teacher_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The teacher itself; the seed is that of its samples."""
    recipe = recipe_of({**dit(), "steps": setting["steps"]})
    return {
        "training_macs": recipe.steps * update_macs(recipe),
        **found(teacher(), recipe, seed),
    }


def hand_over_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """A start that nothing has been learnt on yet, and where it comes from."""
    model, recipe = first_stage(json.dumps(setting["first"]), seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hand_over = HAND_OVERS[setting["start"]]
        start = hand_over(model, recipe_of(dit()), VIEWS[setting["first"]["view"]].how)
    return found(start, recipe, seed)


@cache
def first_stage(first: str, seed: int) -> tuple[DiT, Recipe]:
    """The model of a first stage, given as JSON, and its recipe."""
    recipe = stage_recipe(part := json.loads(first))
    arguments = dict(seed=seed, device="cpu", data=half("train"), progress=False)
    return run(recipe, loss_fn=VIEWS[part["view"]].loss_fn, **arguments).model, recipe


# ---------------------------------------------------------------------- the experiments

LARGE = {"patch_size": 4}
SMALL = {"input_size": SIZE // 2}
#: The share of the budget that large patches cost where both stages see as many images.
NOTES = 0.19
FIRST = {
    "p = 4": stage(1 / 2, model=LARGE),
    "resized": stage(1 / 2, "resized", model=SMALL),
    "resized, less noise": stage(1 / 2, "resized, less noise", model=SMALL),
    "windows": stage(1 / 2, "windows", model=SMALL),
}


def two(first: Mapping[str, Any], hand_over: str = "carried") -> dict[str, Any]:
    """A setting: a first stage, and the rest of the budget for the model at the end."""
    return {"stages": [first, stage(1 - first["share"])], "hand_over": hand_over}


EXPERIMENTS = (
    Experiment(
        name="stages",
        about="One stage against two of equal training MACs: large patches or small images first",
        settings={
            "one stage": {"stages": [stage(1)]},
            "p = 4 for 1/2": two(FIRST["p = 4"]),
            "p = 4 as in the notes": {
                "stages": [
                    stage(NOTES, model=LARGE, batch_size=128),
                    {**stage(1 - NOTES, lr=RECIPE["lr"] / 2), "warmup": 0.005},
                ],
                "hand_over": "carried",
            },
            "p = 4 for 1/2, blocks alone": two(FIRST["p = 4"], "blocks alone"),
            "resized for 1/2": two(FIRST["resized"]),
            "windows for 1/2": two(FIRST["windows"]),
        },
        seeds=range(3),
        compute=stages_cell,
    ),
    Experiment(
        name="stages-share",
        about="Large patches first, by the share of the budget that they get; one seed",
        settings={
            f"p = 4 for {name}": two(stage(share, model=LARGE))
            for name, share in (("1/4", 1 / 4), ("3/4", 3 / 4))
        },
        seeds=(0,),
        compute=stages_cell,
    ),
    Experiment(
        name="hand-over",
        about="A model of p = 2 at 16 px before its first update, by what it starts from; one seed",
        settings={
            f"{name}: {start}": {"first": FIRST[name], "start": start}
            for name, starts in (
                ("p = 4", ("same", "carried", "kernel halved", "blocks alone")),
                ("resized", ("carried",)),
                ("resized, less noise", ("carried",)),
                ("windows", ("carried",)),
            )
            for start in starts
        },
        seeds=(0,),
        compute=hand_over_cell,
    ),
    Experiment(
        name="distillation",
        about="Half as deep a student, alone and with a teacher, by the weight of what it says",
        settings={
            "alone, equal MACs": student(0, LONGER),
            "teacher 1/2": student(0.5),
            "teacher 1/2 and tokens": student(0.5, tokens=TOKENS),
        },
        seeds=range(3),
        compute=distilled_cell,
    ),
    Experiment(
        name="distillation-teacher",
        about="The teacher of the students",
        settings={"teacher": {"steps": TEACHER}},
        seeds=(0,),
        compute=teacher_cell,
    ),
)
