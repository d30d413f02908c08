"""What all samplers share: the walk down a grid, the noise they draw, and a record of the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from dit_edu._checks import check_finite, check_labels

#: Called after every step as ``callback(k, t, x_t, x0_hat)``.
Callback = Callable[[int, float, Tensor, Tensor], None]
Generators = torch.Generator | Sequence[torch.Generator] | None
#: ``ask(x, t)`` is what the denoiser says of ``x`` (B, C, H, W) at ``t`` (B,), checked.
Ask = Callable[[Tensor, Tensor], Tensor]


class Trajectory:
    """A callback that keeps all a sampler passes through, on the CPU.

    Example:
        >>> way = Trajectory()
        >>> ddim_sample(model, diffusion, shape, y, steps=10, callback=way)  # doctest: +SKIP
        >>> way.x0[-1]  # the last guess is the image itself  # doctest: +SKIP

    Attributes:
        t: the K steps that were visited.
    """

    def __init__(self) -> None:
        self.t: list[float] = []
        self._x: list[Tensor] = []
        self._x0: list[Tensor] = []

    def __call__(self, k: int, t: float, x_t: Tensor, x0_hat: Tensor) -> None:
        self.t.append(t)
        self._x.append(x_t.to("cpu", copy=True))
        self._x0.append(x0_hat.to("cpu", copy=True))

    @property
    def x(self) -> Tensor:
        """The noisy images at each step, (K, B, C, H, W)."""
        return torch.stack(self._x)

    @property
    def x0(self) -> Tensor:
        """The guesses of the clean image at each step, (K, B, C, H, W)."""
        return torch.stack(self._x0)


def noise_streams(seed: int, n: int, start: int = 0) -> list[torch.Generator]:
    """A source of noise for each sample, so that none depends on the batch that it is drawn in.

    Args:
        seed: of all samples together.
        n: how many samples.
        start: the number of the first; ``noise_streams(s, 5)[3:]`` and ``noise_streams(s, 2, 3)``
            give the same noise.

    Returns:
        n generators, all on the CPU, so that a sample is the same on every device.
    """
    numbers = range(start, start + n)
    return [torch.Generator().manual_seed((1_000_003 * seed + k) % 2**32) for k in numbers]


def gaussian_noise(
    shape: tuple[int, ...], generator: Generators, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """ε of ``shape`` (B, …) on ``device``, from one generator, one for each sample, or torch's."""
    if isinstance(generator, Sequence):
        rows = [
            torch.randn(shape[1:], generator=g, device=g.device, dtype=dtype) for g in generator
        ]
        return torch.stack(rows).to(device)  # B x (C, H, W) -> (B, C, H, W)
    where = device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=where, dtype=dtype).to(device)


@torch.no_grad()
def walk(
    model: nn.Module,
    look: Callable[[Ask, Tensor, Tensor, Tensor], dict[str, Tensor]],
    move: Callable[..., Tensor],
    ts: Sequence[float],
    end: float,
    shape: tuple[int, ...],
    y: Tensor,
    *,
    generator: Generators = None,
    noise: Tensor | None = None,
    progress: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """Walk down the grid ``ts`` from pure noise to the clean image.

    Args:
        model: a denoiser; put into evaluation mode on the way.
        look: ``look(ask, x, t, t_prev)`` asks the denoiser and returns a dictionary with ``x0``.
        move: ``move(seen, x, t, t_prev, ask, fresh)`` returns the next x, given what ``look`` saw;
            ``fresh()`` draws noise. It is not asked at the last step, which ends at x̂_0 itself.
        ts: the steps, descending; ``end`` is the one of the clean image.
        shape, y, generator, noise, progress, callback: see :func:`dit_edu.sampling.ddpm_sample`.

    Returns:
        x_0, of ``shape``.

    Raises:
        ValueError: shapes disagree, a label is not allowed, or the denoiser's output is not finite;
            the message names the sampling step.
    """
    if len(shape) not in (4, 5) or len(y) != shape[0]:
        raise ValueError(
            f"shape={tuple(shape)} and y of shape {tuple(y.shape)} disagree; "
            "allowed: (B, C, H, W), or (B, C, F, H, W) of videos, and (B, …)."
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
        return gaussian_noise(shape, generator, y.device, dtype)

    x = fresh() if noise is None else noise.to(y.device)  # (B, C, H, W)
    with evaluating(model):
        pairs = list(zip(ts, [*ts[1:], end], strict=True))
        for k, (t, t_prev) in enumerate(tqdm(pairs, disable=not progress, desc="sampling")):
            now, then = batch_of(t, x), batch_of(t_prev, x)  # (B,)
            ask = asking(model, y, f"sampling step k={k}")
            seen = look(ask, x, now, then)
            if callback is not None:
                callback(k, t, x, seen["x0"])
            x = seen["x0"] if t_prev == end else move(seen, x, now, then, ask, fresh)
    return x


def batch_of(t: float, x: Tensor) -> Tensor:
    """One step for a whole batch ``x``: (B,), integer or of the dtype of ``x`` as ``t`` is."""
    dtype = torch.int64 if isinstance(t, int) else x.dtype
    return torch.full((len(x),), t, device=x.device, dtype=dtype)  # (B,)


def asking(model: nn.Module, y: Tensor, where: str) -> Ask:
    """The denoiser as ``where`` asks it: an output that is not finite is an error that says so.

    (The denoiser's own ``forward`` looks at no values: it must trace and export.)
    """

    def ask(x: Tensor, t: Tensor) -> Tensor:
        out = model(x, t, y)
        check_finite(f"the model's output at {where}, t={t[0].item():.6g},", out)
        return out

    return ask


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
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
