"""Sampling: from pure noise to an image, by the steps of a grid.

Both samplers walk down a grid of steps t_1 > t_2 > … > t_K and end at the clean image. At each
step the denoiser gives x̂_0, and the two differ only in where they go from there: DDPM draws from
the posterior q(x_t' | x_t, x̂_0); DDIM goes straight to the point whose noise is the predicted one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from dit_edu._checks import check_choice, check_labels, check_positive_int
from dit_edu.diffusion import GaussianDiffusion

GRIDS = ("uniform", "quadratic")
Callback = Callable[[int, int, Tensor, Tensor], None]


def timestep_grid(num_timesteps: int, steps: int, kind: str = "uniform") -> Tensor:
    """Choose the steps that a sampler visits.

    Args:
        num_timesteps: T of the process.
        steps: how many to visit, 1 to T.
        kind: ``"uniform"`` spaces them evenly from T-1 to 0; ``"quadratic"`` makes the strides grow
            with t, so that more steps fall where little noise is left.

    Returns:
        (steps,) int64, strictly descending; the first is T-1 and, with 2 steps or more, the last 0.

    Raises:
        TypeError, ValueError: ``steps`` is not an integer from 1 to T, or ``kind`` is unknown.

    Example:
        >>> timestep_grid(1000, 5).tolist()
        [999, 749, 500, 250, 0]

    Source: Nichol & Dhariwal 2021, section 4 (uniform); Song et al. 2021 (DDIM), appendix D.2
    (quadratic).
    """
    check_positive_int("num_timesteps", num_timesteps)
    if check_positive_int("steps", steps) > num_timesteps:
        raise ValueError(f"steps={steps} exceeds the process; allowed: 1 to {num_timesteps}.")
    check_choice("kind", kind, GRIDS)
    if steps == 1:
        return torch.tensor([num_timesteps - 1])
    u = torch.linspace(0, 1, steps, dtype=torch.float64)  # (K,)
    t = (num_timesteps - 1) * (u if kind == "uniform" else u**2)
    # Near 0 the quadratic grid would visit one step twice: the k-th value is at least k.
    return torch.maximum(t.round().long(), torch.arange(steps)).flip(0)  # (K,)


def noise_streams(seed: int, n: int, start: int = 0) -> list[torch.Generator]:
    """A source of noise for each sample, so that none depends on the batch that it is drawn in.

    Args:
        seed: of all samples together.
        n: how many samples.
        start: the number of the first; ``noise_streams(s, 5)[3:]`` and ``noise_streams(s, 2, 3)``
            give the same noise.

    Returns:
        n generators on the CPU: a sample is the same on every device, too.
    """
    numbers = range(start, start + n)
    return [torch.Generator().manual_seed((1_000_003 * seed + k) % 2**32) for k in numbers]


def ddpm_sample(
    model: nn.Module,
    diffusion: GaussianDiffusion,
    shape: tuple[int, ...],
    y: Tensor,
    *,
    steps: int | None = None,
    grid: str = "uniform",
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    noise: Tensor | None = None,
    clip: bool = False,
    progress: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """Ancestral sampling: draw x_t' ~ q(x_t' | x_t, x̂_0) at every step of the grid.

    Args:
        model: a denoiser; put into evaluation mode while sampling.
        diffusion: the process it was trained for.
        shape: (B, C, H, W) of the result.
        y: conditions, (B,); the samples are drawn on their device.
        steps: how many of the T steps to visit; all of them unless given.
        grid: which ones, see :func:`timestep_grid`.
        generator: the source of all noise; or one for each sample, see :func:`noise_streams`.
        noise: the first x_{T-1}, of ``shape``; drawn if not given.
        clip: clamp x̂_0 to [-1, 1] at every step.
        progress: show a progress bar.
        callback: called after every step as ``callback(k, t, x_t, x0_hat)``.

    Returns:
        x_0, of ``shape``.

    Raises:
        TypeError, ValueError: a bad grid, label or shape.

    Source: Ho et al. 2020, algorithm 2; on a subset of steps: Nichol & Dhariwal 2021, section 4.
    """

    def step(p: dict[str, Tensor], t_prev: Tensor, fresh: Callable[[], Tensor]) -> Tensor:
        return p["mean"] + p["variance"].sqrt() * fresh()  # x_t' = μ + sqrt(β̃) z

    steps = diffusion.num_timesteps if steps is None else steps
    ts = timestep_grid(diffusion.num_timesteps, steps, grid)
    return _reverse(
        step, model, diffusion, ts, shape, y, generator, noise, clip, progress, callback
    )


def ddim_sample(
    model: nn.Module,
    diffusion: GaussianDiffusion,
    shape: tuple[int, ...],
    y: Tensor,
    *,
    steps: int = 50,
    eta: float = 0.0,
    grid: str = "uniform",
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    noise: Tensor | None = None,
    clip: bool = False,
    progress: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """DDIM: a deterministic path (η = 0) that gets by with few steps.

    With η = 1 the steps are those of :func:`ddpm_sample`. The other arguments are the same too.

    Args:
        eta: η, how much of the posterior's noise is added again, at least 0.

    Returns:
        x_0, of ``shape``.

    Raises:
        TypeError, ValueError: a bad grid, label, shape or ``eta``.

    Source: Song et al. 2021 (DDIM), equations 12 and 16.
    """
    if not eta >= 0:
        raise ValueError(f"eta={eta} must be a number >= 0.")

    def step(p: dict[str, Tensor], t_prev: Tensor, fresh: Callable[[], Tensor]) -> Tensor:
        ab_prev = diffusion.alpha_bar(t_prev, p["x0"]).to(p["x0"].dtype)  # (B, 1, 1, 1)
        sigma2 = eta**2 * p["variance"]  # σ² = η² β̃
        x = ab_prev.sqrt() * p["x0"] + (1 - ab_prev - sigma2).clamp(min=0).sqrt() * p["eps"]
        return x + sigma2.sqrt() * fresh() if eta else x

    ts = timestep_grid(diffusion.num_timesteps, steps, grid)
    return _reverse(
        step, model, diffusion, ts, shape, y, generator, noise, clip, progress, callback
    )


@torch.no_grad()
def _reverse(
    step, model, diffusion, ts, shape, y, generator, noise, clip, progress, callback
) -> Tensor:
    """Walk down the grid ``ts``; ``step`` says how to get from x_t to the next."""
    if len(shape) != 4 or len(y) != shape[0]:
        raise ValueError(
            f"shape={tuple(shape)} and y of shape {tuple(y.shape)} disagree; "
            "allowed: (B, C, H, W) and (B, …)."
        )
    if isinstance(generator, Sequence) and len(generator) != shape[0]:
        raise ValueError(
            f"generator holds {len(generator)} of them; allowed: one for each sample, {shape[0]}."
        )
    if noise is not None and tuple(noise.shape) != tuple(shape):
        raise ValueError(f"noise has shape {tuple(noise.shape)}; allowed: {tuple(shape)}.")
    check_labels(model, y)

    dtype = torch.get_default_dtype() if noise is None else noise.dtype

    def fresh() -> Tensor:
        if isinstance(generator, Sequence):
            rows = [
                torch.randn(shape[1:], generator=g, device=g.device, dtype=dtype) for g in generator
            ]
            return torch.stack(rows).to(y.device)  # B x (C, H, W) -> (B, C, H, W)
        device = y.device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=device, dtype=dtype).to(y.device)

    x = fresh() if noise is None else noise.to(y.device)  # (B, C, H, W)
    with _evaluating(model):
        pairs = list(zip(ts.tolist(), [*ts.tolist()[1:], -1], strict=True))
        for k, (t, t_prev) in enumerate(tqdm(pairs, disable=not progress, desc="sampling")):
            t_batch = torch.full((len(x),), t, device=x.device)  # (B,)
            prev_batch = torch.full((len(x),), t_prev, device=x.device)  # (B,)
            p = diffusion.p_mean_variance(model(x, t_batch, y), x, t_batch, clip, prev_batch)
            if callback is not None:
                callback(k, t, x, p["x0"])
            # The last step ends at x̂_0 itself: the posterior's variance is 0 there.
            x = p["x0"] if t_prev == -1 else step(p, prev_batch, fresh)
    return x


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while: no label is dropped, and every part's old mode comes back.

    Part by part, because a fresh wrapper such as ``Guided`` is in training mode even around a model
    that is not.
    """
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, was_training in modes:
            part.training = was_training
