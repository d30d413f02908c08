"""The command line: ``python -m dit_edu list | train | sample | evaluate | cost | release``.

An error is one line on the standard error stream and exit code 2. Everything heavy is imported by
the command that needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

PROGRAM = "python -m dit_edu"
FAILED, INTERRUPTED = 2, 130  # 130 = 128 + SIGINT, as shells have it
UsageError = typer.BadParameter.__mro__[1]  # click's; newer versions of typer hide it in a copy

app = typer.Typer(
    help="Diffusion Transformers: train, draw and measure the models of the book.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Model = Annotated[str, typer.Argument(help="A name that `list` shows, or the path of a run.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; ``arguments`` are those of the process unless given.

    Returns:
        The exit code, 0; 1 where ``evaluate`` found other figures than the card's; 2 for an error,
        of which one line was printed; 130 after Ctrl-C.
    """
    try:
        code = get_command(app).main(arguments, prog_name=PROGRAM, standalone_mode=False)
        return code or 0
    except UsageError as error:
        return _fail(f"{error.format_message()} See {PROGRAM} --help.")
    except OSError as error:
        reason = error.strerror or str(error)
        return _fail(f"{reason}: {error.filename}" if error.filename else reason)
    except ValueError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _fail(message: str) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return FAILED


@app.command("list")
def list_() -> None:
    """List the models of the zoo and the recipes, one line each."""
    from dit_edu.lab import zoo
    from dit_edu.lab.recipes import RECIPES

    for name in zoo.names():
        card = zoo.card(name)
        metrics = card["metrics"].get("mean", card["metrics"])
        shown = [f"{key} {metrics[key]:.3f}" for key in ("accuracy", "fd_ratio") if key in metrics]
        print(f"model   {name:16} {card.get('about', card['kind'])}; {', '.join(shown)}")
    for name, recipe in RECIPES.items():
        print(f"recipe  {name:16} {recipe.about}; {recipe.steps} steps of {recipe.batch_size}")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe that `list` shows.")],
    seed: Annotated[int, typer.Option(help="Of the weights and all that is drawn.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the checkpoint; runs/RECIPE-SEED unless given.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    device: Device = "auto",
    steps: Annotated[int | None, typer.Option(help="In place of the recipe's.")] = None,
    lr: Annotated[float | None, typer.Option(help="In place of the recipe's.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="A folder of images or .npy latents, or of such folders.")
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Mirrored images of --data too.")] = False,
    size: Annotated[
        int | None, typer.Option(help="Side of what the model sees, pixels or latents.")
    ] = None,
    vae: Annotated[
        Path | None, typer.Option(help="Folder of an autoencoder of diffusers, for --data.")
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="A model to go on from, by name or the path of a run.")
    ] = None,
    lora: Annotated[
        int | None, typer.Option(help="Rank: train adapters, not the weights of --start.")
    ] = None,
) -> None:
    """Train a model; Ctrl-C writes a checkpoint that --resume goes on from."""
    from dit_edu.lab.finetune import ADAPTERS, save_adapters
    from dit_edu.lab.own import own_data
    from dit_edu.lab.train import run

    for option, given in (("--flip", flip), ("--size", size), ("--vae", vae)):
        if given and data is None:
            raise ValueError(f"{option} needs --data.")
    if lora is not None and start is None:
        raise ValueError("--lora needs --start.")
    chosen = _recipe(recipe, steps, lr, size, vae, lora)
    first = int(os.environ.get("RANK", "0")) == 0  # of the processes that torchrun started
    base = None if start is None else _denoiser(start)[0]
    if data is not None:
        known = 0 if base is None else base.num_classes
        report = print if first else lambda line: None
        chosen, examples = own_data(chosen, data, flip=flip, first_label=known, report=report)
    out = out or Path("runs") / f"{recipe}-{seed}"
    try:
        result = run(
            chosen,
            seed=seed,
            out=out,
            resume=resume,
            device=device,
            progress=first,
            data=None if data is None else examples,
            start=base,
        )
    except KeyboardInterrupt:
        if first:
            again = ["train", recipe, "--seed", str(seed), "--out", str(out), "--resume"]
            options = dict(
                steps=steps, lr=lr, data=data, size=size, vae=vae, start=start, lora=lora
            )
            for name, value in options.items():
                again += [] if value is None else [f"--{name}", str(value)]
            again += ["--flip"] if flip else []
            print(f"\ninterrupted; go on with: {PROGRAM} {shlex.join(again)}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if first:
        loss = f", loss {result.history[-1]['loss']:.4f}" if result.history else ""
        print(f"trained {chosen.steps} steps{loss}; wrote {out}")
        if lora is not None:
            save_adapters(out / ADAPTERS, result.model, base)
        again = ["sample", str(out), "--out", "samples.png"]
        again += ["--class", str(base.num_classes)] if base and data else []
        print(f"draw from it with: {PROGRAM} {shlex.join(again)}")


@app.command()
def sample(
    name: Model,
    out: Annotated[Path, typer.Option(help="FILE.npz (images, labels) or FILE.png.")],
    n: Annotated[int, typer.Option("--n", help="How many images.")] = 64,
    label: Annotated[
        int | None, typer.Option("--class", help="Of all images; unless given, each in turn.")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="Guidance; 1 is none.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler.")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    sampler: Annotated[
        str | None, typer.Option(help="ddim, ddpm or dpm++; of a flow, euler or heun.")
    ] = None,
) -> None:
    """Draw images; what is not given is as the model's card has it."""
    from dataclasses import replace

    import numpy as np
    import torch
    from PIL import Image

    from dit_edu.lab.data import to_unit
    from dit_edu.lab.draw import Sampling, contact_sheet, cycle_labels, draw
    from dit_edu.lab.files import atomic_write
    from dit_edu.lab.zoo import load_vae

    if out.suffix not in (".npz", ".png"):
        raise ValueError(f"--out={out}: unknown extension {out.suffix!r}; allowed: .npz, .png.")
    model, card, recipe = _denoiser(name)
    given = {"scale": scale, "steps": steps, "sampler": sampler}
    settings = {key: value for key, value in given.items() if value is not None}
    sampling = replace(Sampling(**card["sampling"]), **settings)
    labels = cycle_labels(n, model.num_classes)
    if label is not None:
        if not 0 <= label < model.num_classes:
            raise ValueError(f"--class={label}; allowed: 0 to {model.num_classes - 1}.")
        labels = torch.full_like(labels, label)
    with atomic_write(out) as file:  # opened first: an unwritable file should fail at once
        process, vae = recipe.process.build(), load_vae(recipe)
        images = draw(model, process, labels, sampling, vae=vae, seed=seed, progress=True)
        unit = to_unit(images)  # (n, C, H, W) in [0, 1]
        if out.suffix == ".npz":
            np.savez(file, images=unit.numpy(), labels=labels.numpy())
        else:
            Image.fromarray(contact_sheet(unit)).save(file, "PNG")
    print(f"wrote {n} images to {out}: {sampling}")


@app.command()
def evaluate(name: Model) -> None:
    """Measure a model again and compare with its card; exit code 1 if the figures are others."""
    from dit_edu.lab.draw import Sampling
    from dit_edu.lab.metrics import references
    from dit_edu.lab.release import METRICS, measure, outside_tolerance
    from dit_edu.lab.zoo import load_vae

    model, card, recipe = _denoiser(name)
    now = measure(model, recipe, Sampling(**card["sampling"]), card["seed"])
    rows = {"now": now}
    if "metrics" in card:
        rows["card"] = card["metrics"]["per_seed"][0]
        rows["mean of seeds"] = card["metrics"]["mean"]
        rows["sd of seeds"] = card["metrics"]["sd"]
    rows |= references(recipe.data, vae=load_vae(recipe))
    print(f"{card['name']} on {recipe.data}, n = {now['n']}, {card['sampling']}")
    print(f"{'':16}" + "".join(f"{metric:>11}" for metric in METRICS))
    for title, row in rows.items():
        cells = ("-" if row[metric] is None else f"{row[metric]:.3f}" for metric in METRICS)
        print(f"{title:16}" + "".join(f"{cell:>11}" for cell in cells))
    if "metrics" not in card:
        print("a run of one's own has no card to compare with")
    elif outside := outside_tolerance(now, rows["card"]):
        print(f"differs from the card: {', '.join(outside)}")
        raise typer.Exit(1)
    else:
        print("the card's figures are reproduced")


@app.command()
def export(
    name: Model,
    out: Annotated[Path | None, typer.Option(help="FILE.js; NAME.js unless given.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the matrices: float16 or float32.")] = "float16",
) -> None:
    """Write a model as a script that a page can run without Python."""
    from dit_edu.lab.export import export as export_model

    path = export_model(name, out or Path(f"{Path(name).name}.js"), dtype)
    print(f"wrote {path}, {path.stat().st_size / 1000:.0f} kB")


@app.command()
def cost(
    model: Annotated[str, typer.Argument(help="A published model, DiT-S/8 to DiT-XL/2.")],
    resolution: Annotated[
        str, typer.Option(help="Of the image in pixels: 256 or 512x256.")
    ] = "256",
    patch: Annotated[int | None, typer.Option(help="In place of the name's.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 250,
    scale: Annotated[float, typer.Option(help="Guidance; 1 is none.")] = 1.0,
    batch: Annotated[int, typer.Option(help="Images drawn at once.")] = 1,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    device: Device = "auto",
    time: Annotated[bool, typer.Option(help="Measure the time here.")] = True,
) -> None:
    """Say what a published model costs: parameters, MACs, memory, and time on this machine."""
    from dit_edu.lab.costs import at_resolution, receipt

    sizes = at_resolution(model, resolution, patch)
    where = device if time else None
    print(receipt(sizes, steps=steps, scale=scale, batch=batch, device=where, dtype=dtype))


@app.command()
def release(
    recipe: str,
    device: Device = "auto",
    steps: Annotated[
        list[int] | None, typer.Option(help="Of the sampler, to choose among; else 20 and 50.")
    ] = None,
    scale: Annotated[
        list[float] | None, typer.Option(help="Of guidance, to choose among; else 1 to 2.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many are trained; the first is shipped.")] = 3,
) -> None:
    """Train and measure what is shipped under this name, and put it into the zoo."""
    from dit_edu.lab import autoencoder, features
    from dit_edu.lab.recipes import get_recipe
    from dit_edu.lab.release import SCALES, STEPS
    from dit_edu.lab.release import release as release_model

    if recipe in features.RECIPES:
        print(f"{recipe}: {features.train_features(recipe)['metrics']}")
        return
    if recipe in autoencoder.RECIPES:
        print(f"{recipe}: {autoencoder.release_vae(recipe)['metrics']}")
        return
    settings = {"steps": steps or STEPS, "scales": scale or SCALES}
    card = release_model(get_recipe(recipe), range(seeds), device=device, **settings)
    print(f"{card['name']}: {card['seconds']} s on {card['device']}; sha256 {card['sha256'][:12]}…")


def _recipe(
    name: str,
    steps: int | None,
    lr: float | None,
    size: int | None,
    vae: Path | None,
    rank: int | None,
) -> Any:
    """A recipe by name, with what the options say in the place of its own."""
    from dataclasses import replace

    from dit_edu.lab.recipes import get_recipe

    recipe = get_recipe(name)
    if steps is not None:
        recipe = replace(recipe, steps=steps, warmup=min(recipe.warmup, max(steps, 0)))
    if lr is not None:
        recipe = replace(recipe, lr=lr)
    if size is not None:
        recipe = replace(recipe, model={**recipe.model, "input_size": size})
    if vae is not None:
        recipe = replace(recipe, latents=str(vae))
    if rank is not None:
        recipe = replace(recipe, kind="LoRADiT", model={**recipe.model, "rank": rank})
    return recipe


def _denoiser(name: str) -> tuple[Any, dict[str, Any], Any]:
    """A model that draws images, its card and its recipe."""
    from dit_edu.lab import zoo
    from dit_edu.lab.recipes import MODELS, Recipe

    model, card = zoo.load(name)
    if card["kind"] not in MODELS:
        raise ValueError(f"{name} is a model of kind {card['kind']!r}: it draws no images.")
    return model, card, Recipe.from_dict(card["recipe"])
