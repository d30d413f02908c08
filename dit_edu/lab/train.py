"""The training loop: one generator, the same on a laptop and under ``torchrun``.

    for step in train(RECIPES["digits-dit"]):
        print(step.step, step.loss)

Everything that update k draws (its images, their steps t, the noise, the dropped labels) is a
function of (seed, k) alone. So a run that was interrupted and resumed ends, on the CPU, with the
very bits of a run that was not, and no random state needs to be kept.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from dit_edu.dddit.router import BudgetedLosses
from dit_edu.dddit.training import ModeLosses, switched_share
from dit_edu.dit import DiT
from dit_edu.interpolant import Interpolant
from dit_edu.lab.checkpoint import TrainState, checkpoint_path, load_checkpoint, save_checkpoint
from dit_edu.lab.data import Labelled, batch_indices, dataset
from dit_edu.lab.devices import accelerator_on, random_state_of, uninterrupted
from dit_edu.lab.finetune import start_from
from dit_edu.lab.lora import LoRADiT
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.zoo import load, load_vae

MEMORY_OF_BINS = 0.98  # the loss per bin is a mean over about the last 1/(1 - 0.98) = 50 steps

#: ``loss_fn(model, diffusion, x0, t, y, noise)`` returns (B,) tensors ``loss`` (to be minimised)
#: and ``mse`` (to be reported per noise bin). One that changes while training goes on has an
#: attribute ``step``, which is set to the number of updates done before each call.
LossFn = Callable[[nn.Module, Interpolant, Tensor, Tensor, Tensor, Tensor], dict[str, Tensor]]


class NonFiniteLossError(ValueError):
    """The loss or its gradient became NaN or infinite."""


@dataclass(frozen=True)
class Step:
    """One update, as :func:`train` reports it. Numbers are fetched from the device when asked for.

    Attributes:
        step: how many updates are done, so 1 after the first.
        lr: the learning rate that was used.
        ema: the averaged model, in evaluation mode; it goes on changing with the next step.
    """

    step: int
    lr: float
    ema: nn.Module
    _loss: Tensor
    _grad_norm: Tensor
    _running: Tensor

    @property
    def loss(self) -> float:
        """The mean loss over the (global) batch."""
        return self._loss.item()

    @property
    def grad_norm(self) -> float:
        """The norm of the gradient before it was clipped."""
        return self._grad_norm.item()

    @property
    def loss_by_bin(self) -> list[float]:
        """A running mean of the error for each range of t, low noise first; NaN where none fell."""
        return (self._running[0] / self._running[1]).tolist()


@dataclass(frozen=True)
class TrainedModel:
    """What :func:`run` returns: the averaged model, on the CPU, and at most 1000 rows of history.

    Attributes:
        model: in evaluation mode.
        history: dictionaries with ``step``, ``loss``, ``lr``, ``grad_norm`` and ``loss_by_bin``.
    """

    model: nn.Module
    history: list[dict[str, Any]]


def train(
    recipe: Recipe,
    *,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    device: str = "auto",
    loss_fn: LossFn | None = None,
    data: Labelled | None = None,
    start: DiT | None = None,
    trainable: Callable[[str], bool] | None = None,
) -> Generator[Step, None, nn.Module]:
    """Train a model, step by step.

    If ``out`` is given, a checkpoint is written every ``recipe.checkpoint_every`` steps, after the
    last, and when the ``for`` loop is left early, by an exception or Ctrl-C too: that of the last
    step that was finished.

    Args:
        recipe: what to train.
        seed: of the weights and of everything drawn.
        out: a folder for the checkpoint.
        resume: go on from the checkpoint in ``out``.
        device: ``"auto"`` takes CUDA, else MPS, else the CPU. On CUDA the model runs in bfloat16.
        loss_fn: another loss, see ``LossFn``; the default is the process's own ``losses``, or what
            the recipe's budget asks for.
        data: images (n, C, H, W) in [-1, 1], or their latents, and labels (n,), in place of the
            recipe's training half. They stay where they are, so they may be larger than memory.
        start: a trained model whose weights the run starts from, see
            :func:`~dit_edu.lab.finetune.start_from`; the recipe's own unless given. A run that is
            resumed has them already.
        trainable: which parameters are trained, by name; the others stay as they are. A run that is
            resumed has to be told again.

    Yields:
        A :class:`Step` after every update.

    Returns:
        The averaged model in evaluation mode (the value of the generator).

    Raises:
        FileNotFoundError: ``resume`` without a checkpoint in ``out``.
        NonFiniteLossError: the loss is not finite; the message names the step. The last checkpoint
            stays.
        OSError: ``out`` cannot be written.
        ValueError: a bad argument, a checkpoint of another recipe, or ``out`` holds a checkpoint
            and ``resume`` was not asked for.
    """
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed={seed!r}; allowed: an int >= 0.")
    if resume and out is None:
        raise ValueError("resume=True needs out=, the folder of the checkpoint.")
    if out is not None and not resume and checkpoint_path(out).exists():
        raise ValueError(
            f"out={os.fspath(out)!r} already holds a checkpoint; "
            "resume it, or choose another folder."
        )
    accelerator = accelerator_on(device)  # several processes meet here, after the check above
    if recipe.batch_size % accelerator.num_processes:
        raise ValueError(
            f"batch_size={recipe.batch_size} must be a multiple of the number of processes, "
            f"{accelerator.num_processes}."
        )
    if start is None and recipe.start is not None and not resume:
        start = load(recipe.start)[0]
    state = _fresh_state(recipe, seed, accelerator.device, start, trainable)
    if start is None and not resume and isinstance(state.model, LoRADiT):
        raise ValueError("kind='LoRADiT' needs start=, a trained model for its adapters.")
    if resume:
        load_checkpoint(out, recipe, state)
    elif out is not None and accelerator.is_main_process:
        save_checkpoint(out, recipe, state)  # if that fails, it should fail now and not in an hour
    images, labels = dataset(recipe.data).load("train") if data is None else data
    if (vae := load_vae(recipe)) and images.shape[1:] != vae.latent_shape:
        images = vae.encode(images)  # (n, 3, H, W) -> (n, C, H/f, W/f)
    if data is None:
        images, labels = images.to(accelerator.device), labels.to(accelerator.device)
    loss_fn = loss_fn or _loss_of(recipe, state.model)
    return _loop(recipe, state, accelerator, out, loss_fn, (images, labels))


def run(recipe: Recipe, *, progress: bool = True, **arguments: Any) -> TrainedModel:
    """Run :func:`train` to its end with a progress bar; ``arguments`` are those of ``train``."""
    keep_every = max(1, recipe.steps // 1000)
    history: list[dict[str, Any]] = []
    with (
        closing(train(recipe, **arguments)) as steps,  # an early end writes the checkpoint
        tqdm(total=recipe.steps, desc=recipe.name, disable=not progress) as bar,
    ):
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                return TrainedModel(end.value.cpu(), history)
            if step.step % keep_every == 0 or step.step == recipe.steps:
                history.append(
                    {
                        name: getattr(step, name)
                        for name in ("step", "loss", "lr", "grad_norm", "loss_by_bin")
                    }
                )
                bar.set_postfix(loss=f"{history[-1]['loss']:.4f}", refresh=False)
            bar.update(step.step - bar.n)


def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the average a little towards the model: θ̄ ← d θ̄ + (1 - d) θ."""
    with torch.no_grad():
        averaged, current = list(ema.parameters()), list(model.parameters())
        torch._foreach_lerp_(averaged, current, 1 - decay)  # θ̄ + (1 - d)(θ - θ̄)
        for mine, theirs in zip(ema.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)


# ---------------------------------------------------------------------- the loop


def _loop(
    recipe: Recipe,
    state: TrainState,
    accelerator: Accelerator,
    out: str | os.PathLike[str] | None,
    loss_fn: LossFn,
    data: Labelled,
) -> Generator[Step, None, nn.Module]:
    diffusion = recipe.process.build()
    model, optimizer = accelerator.prepare(state.model, state.optimizer)
    model.train()
    trainable = [p for p in state.model.parameters() if p.requires_grad]
    # Asking a GPU for a number makes it wait, so there the loss is looked at only now and then.
    look_every = 1 if accelerator.device.type == "cpu" else 50
    first_bad = torch.full((), math.inf, device=accelerator.device)
    saved = state.step

    def check_finite() -> None:
        if math.isfinite(bad := first_bad.item()):
            kept = f"; the checkpoint of step {saved} in {out} is intact" if out else ""
            raise NonFiniteLossError(f"the loss is not finite at step {bad:.0f}{kept}.")

    def save() -> None:
        nonlocal saved
        if out is not None and saved < state.step:
            check_finite()
            if accelerator.is_main_process:
                save_checkpoint(out, recipe, state)
            saved = state.step

    try:
        while state.step < recipe.steps:
            with random_state_of(
                state.seed, state.step, accelerator.device, accelerator.process_index
            ) as generator:
                x0, t, y, noise = _batch(recipe, diffusion, state, accelerator, generator, data)
                if hasattr(loss_fn, "step"):
                    loss_fn.step = state.step
                losses = loss_fn(model, diffusion, x0, t, y, noise)  # (B,) each
                loss = losses["loss"].mean()
                accelerator.backward(loss)
            grad_norm = accelerator.clip_grad_norm_(trainable, recipe.grad_clip)
            loss, bins = _gather(accelerator, recipe, loss.detach(), losses["mse"].detach(), t)
            bad = ~torch.isfinite(loss + grad_norm)
            first_bad = torch.where(bad, first_bad.clamp(max=state.step + 1), first_bad)
            if state.step % look_every == 0:
                check_finite()
            lr = recipe.lr_at(state.step)
            with uninterrupted():  # model, average and step number change together
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                update_ema(state.ema, state.model, recipe.ema_decay_at(state.step))
                state.running = MEMORY_OF_BINS * state.running + bins
                state.step += 1
            if state.step % recipe.checkpoint_every == 0 or state.step == recipe.steps:
                save()
            yield Step(state.step, lr, state.ema, loss, grad_norm, state.running)
        check_finite()
    except (GeneratorExit, KeyboardInterrupt):
        save()
        raise
    finally:
        accelerator.end_training()
    return state.ema


def _fresh_state(
    recipe: Recipe,
    seed: int,
    device: torch.device,
    start: DiT | None,
    trainable: Callable[[str], bool] | None,
) -> TrainState:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = recipe.build_model()
    if start is not None:
        start_from(model, start)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and (not trainable or trainable(name)))
    model = model.to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(f"trainable={trainable!r} names no parameter; allowed: some.")
    optimizer = torch.optim.AdamW(
        trained,
        lr=recipe.lr,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    running = torch.zeros(2, recipe.noise_bins, device=device, dtype=trained[0].dtype)
    return TrainState(model, ema, optimizer, running, seed)


def _loss_of(recipe: Recipe, model: nn.Module) -> LossFn:
    if recipe.budget is None:
        return _default_loss
    return ModeLosses(BudgetedLosses(switched_share(model, recipe.budget)))


def _default_loss(model, diffusion, x0, t, y, noise) -> dict[str, Tensor]:
    return diffusion.losses(model, x0, t, y, noise=noise)


def _batch(
    recipe: Recipe,
    diffusion: Interpolant,
    state: TrainState,
    accelerator: Accelerator,
    generator: torch.Generator,
    data: Labelled,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """This process's slice of the global batch of update ``state.step``: x0, t, y, noise.

    Every process draws the whole batch and keeps its slice, so that the batch does not depend on
    how many there are.
    """
    images, labels = data
    size, device = recipe.batch_size, accelerator.device
    rows = batch_indices(len(images), size, state.seed, state.step)  # (B,)
    t = diffusion.sample_times(size, generator, device)  # (B,)
    dtype = state.running.dtype  # that of the weights, which is not float32 in every test
    noise = torch.randn(
        (size, *images.shape[1:]), generator=generator, device=device, dtype=dtype
    )  # (B, C, H, W)
    share = size // accelerator.num_processes
    mine = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
    rows = rows[mine].to(images.device)  # (B,) -> (B / processes,)
    return images[rows].to(noise), t[mine], labels[rows].to(device), noise[mine]


def _gather(
    accelerator: Accelerator, recipe: Recipe, loss: Tensor, mse: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean loss, and sums and counts of the error per noise bin, over all processes."""
    bins = torch.zeros(2, recipe.noise_bins, device=mse.device, dtype=mse.dtype)
    index = (t * recipe.noise_bins // recipe.process.num_timesteps).long()  # (B,)
    bins.index_add_(1, index, torch.stack([mse, torch.ones_like(mse)]))  # (2, B) -> (2, bins)
    if accelerator.num_processes > 1:
        loss = accelerator.reduce(loss, "mean")
        bins = accelerator.reduce(bins, "sum")
    return loss, bins
