"""Routers that are told the condition: logits, hard choices of them, and the losses that steer.

A router gives each of E units (experts, blocks, branches) a logit. Two kinds of choice follow: of
units that compete :class:`TopK` takes some; :class:`Switches` turns each on or off by itself::

    choice = Switches()(Router(D, E, bias=3.0)(c))  # c (B, D): what the blocks are told
    for unit, gate, items in zip(units, choice.gates.T, choice.items(), strict=True):
        x = run_on(items, lambda x, g: x + g * unit(x), x, gate)

In evaluation a choice is the router's own and without noise, and only what is chosen runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dit_edu._checks import check_positive_int
from dit_edu.dispatch import Items, assign, gumbel_like, straight_through, top_k
from dit_edu.interpolant import Interpolant
from dit_edu.routing import budget_loss, record_routing


class Router(nn.Module):
    """Logits of E units from a condition: a linear map, SiLU, a linear map; or a linear map alone.

    The last map starts at zero, so that at first all conditions are told the same: ``bias``.

    Args:
        dim: D.
        units: E.
        bias: what all logits start with. Well above 0, all switches start on.
        pace: what the last map's answer is multiplied by. An optimizer that scales its steps, as
            Adam does, moves the logits by about as much more in each update.
        hidden: with the layer in between. It costs D² multiply-adds each time that it is asked.

    Raises:
        TypeError, ValueError: ``dim`` or ``units`` is no positive integer, or ``pace`` is not
            positive.
    """

    def __init__(
        self, dim: int, units: int, bias: float = 0.0, pace: float = 0.1, hidden: bool = True
    ) -> None:
        super().__init__()
        if not pace > 0:
            raise ValueError(f"pace={pace}; allowed: above 0.")
        self.pace = pace
        first = [nn.Linear(check_positive_int("dim", dim), dim), nn.SiLU()] if hidden else []
        self.mlp = nn.Sequential(*first, nn.Linear(dim, check_positive_int("units", units)))
        nn.init.zeros_(self.mlp[-1].weight)
        nn.init.constant_(self.mlp[-1].bias, bias / pace)

    def forward(self, c: Tensor) -> Tensor:
        """Conditions (B, D) → logits (B, E); tokens (B, N, D) → (B, N, E)."""
        return self.pace * self.mlp(c)


@dataclass(frozen=True)
class Choice:
    """What was chosen for a batch.

    Attributes:
        chosen: (B, E) bool.
        gates: (B, E), 1 where chosen and 0 elsewhere, with a gradient.
        soft: (B, E), how probable each unit was, with a gradient and without noise: what losses
            and records read.
        heard: whether the gate of a unit that is off has a gradient. It has one only if the unit
            is computed, and multiplied by its gate of 0.
    """

    chosen: Tensor
    gates: Tensor
    soft: Tensor
    heard: bool = False

    def items(self) -> list[Items]:
        """For each unit, whom it is computed for: everybody if all are heard, else who chose it."""
        if self.heard:
            return [slice(None)] * self.chosen.shape[-1]
        return assign(self.chosen)


class _Chooser(nn.Module):
    """What both kinds of choice share.

    Args:
        noise: how much noise the logits get in training; 0 for none.
        heard: in training, let the units that are off be heard too.
    """

    def __init__(self, noise: float, heard: bool) -> None:
        super().__init__()
        if not noise >= 0:
            raise ValueError(f"noise={noise}; allowed: at least 0.")
        self.noise, self.heard = noise, heard

    def decide(self, chosen: Tensor, relaxed: Tensor, soft: Tensor) -> Choice:
        """A choice with the gradient of ``relaxed``, everywhere or only where it was taken."""
        if self.training and self.heard:
            gates = chosen.to(relaxed) + (relaxed - relaxed.detach())
            return Choice(chosen, gates, soft, heard=True)
        return Choice(chosen, straight_through(chosen, relaxed), soft)


class TopK(_Chooser):
    """Units compete: of each item's E units the k with the largest logits are chosen.

    Args:
        k: 1 to E.
        noise: how much Gumbel noise the logits get in training; with 1, the choice is a draw of k
            by their softmax.
        heard: in training, let those that were not chosen be heard too. Everything is computed.
        unbiased: a gate's slope is that of the logarithm of its softmax. With k = 1 and noise 1,
            and for a loss that is linear in the gates, the mean slope is then that of the mean
            loss; without it, units that are chosen often are preferred.

    Raises:
        TypeError, ValueError: ``k`` is no positive integer or above E; ``noise`` is negative; both
            ``heard`` and ``unbiased``.

    Source: Shazeer et al. 2017; the noise, Kool, van Hoof & Welling 2019; without bias, Williams
    1992.
    """

    def __init__(
        self, k: int, noise: float = 1.0, heard: bool = False, unbiased: bool = False
    ) -> None:
        super().__init__(noise, heard)
        self.k, self.unbiased = check_positive_int("k", k), unbiased
        if heard and unbiased:
            raise ValueError("unbiased=True with heard=True; allowed: one of them.")

    def forward(self, logits: Tensor) -> Choice:
        """Logits (B, E) → a choice; its ``soft`` is their softmax."""
        tried = logits
        if self.training and self.noise:
            tried = logits + self.noise * gumbel_like(logits)
        soft = logits.softmax(-1)  # (B, E)
        relaxed = logits.log_softmax(-1) if self.unbiased else soft  # (B, E)
        return self.decide(top_k(tried, self.k), relaxed, soft)


class Switches(_Chooser):
    """Each unit is on or off by itself: on where its logit, with logistic noise, is above 0.

    The difference of two Gumbel variables is logistic, and with it a unit is on with probability
    sigmoid(logit). The gate's gradient is that of sigmoid((logit + noise) / temperature).

    Args:
        noise: how much logistic noise the logits get in training.
        temperature: how wide the gradient's window around 0 is.
        heard: in training, let the units that are off be heard too. Everything is computed.

    Raises:
        ValueError: ``noise`` is negative or ``temperature`` not positive.

    Source: Maddison, Mnih & Teh 2017; for a Diffusion Transformer, Zhao et al. 2025 (DyDiT).
    """

    def __init__(self, noise: float = 1.0, temperature: float = 1.0, heard: bool = True) -> None:
        super().__init__(noise, heard)
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}; allowed: above 0.")
        self.temperature = temperature

    def forward(self, logits: Tensor) -> Choice:
        """Logits (B, E) → a choice; its ``soft`` is their sigmoid."""
        tried = logits
        if self.training and self.noise:
            logistic = gumbel_like(logits) - gumbel_like(logits)  # (B, E)
            tried = logits + self.noise * logistic
        relaxed = (tried / self.temperature).sigmoid()  # (B, E)
        return self.decide(tried > 0, relaxed, logits.sigmoid())


def decision_entropy(probabilities: Tensor) -> Tensor:
    """How undecided switches are: the mean of -p ln p - (1 - p) ln(1 - p), from 0 to ln 2.

    Args:
        probabilities: of each switch to be on, any shape.
    """
    # A sigmoid rounds to 0 or 1; there the entropy is 0, and its slope would be infinite.
    tiny = torch.finfo(probabilities.dtype).eps
    p = probabilities.clamp(tiny, 1 - tiny)
    return (torch.special.entr(p) + torch.special.entr(1 - p)).mean()


class BudgetedLosses:
    """A loss for the training loop that also steers the switches of a model.

    loss + weight (MACs/full - λ')² + entropy H. MACs are those expected under the router's
    probabilities, of what can be switched; H is :func:`decision_entropy`. λ' falls from 1 to λ.

    Args:
        target: λ, the share of the MACs that may run, in [0, 1].
        weight: of the budget.
        entropy: weight of H. Above 0 it makes decisions sharp; below 0, undecided.
        ramp: updates until λ' has come from 1 down to λ; 0 asks for λ at once.

    Attributes:
        step: how many updates are done; the training loop sets it.

    Raises:
        ValueError: ``target`` leaves [0, 1], or ``ramp`` is negative.

    Source: the budget, Zhao et al. 2025 (DyDiT).
    """

    def __init__(
        self, target: float, weight: float = 2.0, entropy: float = 0.01, ramp: int = 200
    ) -> None:
        if not 0 <= target <= 1:
            raise ValueError(f"target={target}; allowed: 0 to 1.")
        if ramp < 0:
            raise ValueError(f"ramp={ramp}; allowed: at least 0.")
        self.target, self.weight, self.entropy, self.ramp = target, weight, entropy, ramp
        self.step = 0

    def target_now(self) -> float:
        """λ' of the next update."""
        done = min(1.0, self.step / self.ramp) if self.ramp else 1.0
        return 1 + done * (self.target - 1)

    def __call__(
        self,
        model: nn.Module,
        process: Interpolant,
        x0: Tensor,
        t: Tensor,
        y: Tensor,
        noise: Tensor,
    ) -> dict[str, Tensor]:
        """See :data:`dit_edu.lab.train.LossFn`."""
        with record_routing(model) as trace:
            losses = process.losses(model, x0, t, y, noise=noise)  # (B,) each
        used = sum((d.soft * d.macs.to(d.soft)).sum(-1) for d in trace.decisions)  # (B,)
        full = float(sum(d.macs.sum() for d in trace.decisions))
        undecided = torch.stack([decision_entropy(d.soft) for d in trace.decisions]).mean()
        steer = self.weight * budget_loss(used, full, self.target_now()) + self.entropy * undecided
        return {**losses, "loss": losses["loss"] + steer}
