"""Which noise levels a sampler visits: few steps well placed can do the work of many."""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch import Tensor

from dit_edu._checks import check_choice, check_positive_int

GRIDS = ("uniform", "quadratic", "beta")
FLOW_GRIDS = ("uniform", "quadratic")


def timestep_grid(
    num_timesteps: int, steps: int | str, kind: str = "uniform", betas: Tensor | None = None
) -> Tensor:
    """Choose the steps that a sampler visits.

    Args:
        num_timesteps: T of the process.
        steps: how many to visit, 1 to T; or a text such as ``"10,10,10"`` or ``"ddim50"``, see
            :func:`~dit_edu.grids.respaced`.
        kind: ``"uniform"`` spaces them evenly from T-1 to 0; ``"quadratic"`` makes the strides grow
            with t, so that more steps fall where little noise is left; ``"beta"`` makes each stride
            as long as β is large there.
        betas: β_0 … β_{T-1} of the process, (T,), for the kind ``"beta"``.

    Returns:
        (steps,) int64, strictly descending; unless ``steps`` is a text, the first is T-1 and, with
        2 steps or more, the last 0.

    Raises:
        TypeError, ValueError: ``steps`` is not an integer from 1 to T, or ``kind`` is unknown.

    Example:
        >>> timestep_grid(1000, 5).tolist()
        [999, 749, 500, 250, 0]

    Source: Nichol & Dhariwal 2021, section 4 (uniform); Song et al. 2021 (DDIM), appendix D.2
    (quadratic).
    """
    check_positive_int("num_timesteps", num_timesteps)
    check_choice("kind", kind, GRIDS)
    if isinstance(steps, str):
        if kind != "uniform":
            raise ValueError(f"steps={steps!r} names its steps itself; allowed: kind='uniform'.")
        return respaced(num_timesteps, steps)
    if check_positive_int("steps", steps) > num_timesteps:
        raise ValueError(f"steps={steps} exceeds the process; allowed: 1 to {num_timesteps}.")
    if kind == "beta" and (betas is None or betas.shape != (num_timesteps,)):
        given = None if betas is None else tuple(betas.shape)
        raise ValueError(f"betas has shape {given}; kind='beta' needs ({num_timesteps},).")
    if steps == 1:
        return torch.tensor([num_timesteps - 1])
    u = torch.linspace(0, 1, steps, dtype=torch.float64)  # (K,)
    k = torch.arange(steps)  # (K,)
    if kind == "beta":
        t = _strides_like(betas, u)
    else:
        t = (num_timesteps - 1) * (u if kind == "uniform" else u**2)
    # Near 0 the quadratic grid would visit one step twice: each is above the one before it, and low
    # enough for those that follow.
    t = (t.round().long() - k).cummax(0).values + k  # (K,)
    return torch.minimum(t, num_timesteps - steps + k).flip(0)  # (K,)


def _strides_like(betas: Tensor, u: Tensor) -> Tensor:
    """Steps t(u) from 0 to T-1 with dt/du proportional to β_t: (K,) float64."""
    # dt/du = c β_t means du = dt / (c β_t): u is the sum of 1/β from 0 to t, over the whole sum.
    inverse = 1 / betas.to(u)  # (T,)
    area = torch.cat([u.new_zeros(1), ((inverse[1:] + inverse[:-1]) / 2).cumsum(0)])  # (T,)
    wanted = u * area[-1]  # (K,)
    right = torch.searchsorted(area, wanted).clamp(1, len(area) - 1)  # (K,)
    part = (wanted - area[right - 1]) / (area[right] - area[right - 1])  # in [0, 1]
    return right - 1 + part


def respaced(num_timesteps: int, sections: str) -> Tensor:
    """The steps that the texts of the published code stand for.

    Args:
        num_timesteps: T.
        sections: ``"10,20,30"`` cuts the T steps into three sections of equal length, low noise
            first, and takes so many of each, evenly spaced with both ends; ``"50"`` is one
            section. ``"ddim50"`` takes every n-th step from 0 on, for the n that gives 50.

    Returns:
        (K,) int64, strictly descending. ``"50"`` begins at T-1; ``"ddim50"`` may begin lower.

    Raises:
        ValueError: the text is none of these, a section has fewer steps than are asked of it, or no
            stride gives the number that DDIM asks for.

    Example:
        >>> respaced(1000, "ddim4").tolist(), respaced(1000, "1,2").tolist()
        ([750, 500, 250, 0], [999, 500, 0])

    Source: Nichol & Dhariwal 2021, section 4, and the code published with it.
    """
    ddim = sections.startswith("ddim")
    try:
        counts = [int(part) for part in sections.removeprefix("ddim").split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or (ddim and len(counts) > 1):
        raise ValueError(f"steps={sections!r}; allowed: such as '50', '10,10,10' or 'ddim50'.")
    if ddim:
        for stride in range(1, num_timesteps + 1):
            steps = range(0, num_timesteps, stride)
            if len(steps) == counts[0]:
                return torch.tensor(steps).flip(0)  # (K,)
        raise ValueError(f"steps={sections!r}: no stride makes {counts[0]} of {num_timesteps}.")
    size, longer = divmod(num_timesteps, len(counts))  # the first sections are one step longer
    chosen: list[int] = []
    for index, (start, end) in enumerate(
        pairwise(accumulate([0] + [size + (i < longer) for i in range(len(counts))]))
    ):
        count = counts[index]
        if count > end - start:
            raise ValueError(
                f"steps={sections!r} exceeds the process: {count} of the {end - start} steps in "
                f"section {index + 1}; allowed: 1 to {end - start}."
            )
        stride = (end - start - 1) / (count - 1) if count > 1 else 1.0
        # Added up one by one, as published: a product would round some halves to the other side.
        chosen += [start + round(at) for at in accumulate([0.0] + [stride] * (count - 1))]
    return torch.tensor(chosen).flip(0)  # (K,)


def flow_grid(steps: int, kind: str = "uniform") -> Tensor:
    """The times τ that a sampler of a flow passes through.

    Args:
        steps: how many steps to make, at least 1.
        kind: ``"uniform"``, or ``"quadratic"``: shorter and shorter steps towards the clean image.

    Returns:
        (steps + 1,) float64, strictly descending from 1 to 0.

    Raises:
        TypeError, ValueError: ``steps`` is not an integer >= 1, or ``kind`` is unknown.
    """
    u = torch.linspace(1, 0, check_positive_int("steps", steps) + 1, dtype=torch.float64)  # (K+1,)
    return u if check_choice("grid", kind, FLOW_GRIDS) == "uniform" else u**2
