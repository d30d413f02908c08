"""The figure of the chapter on the sequence loss: what a prior expects of the next patch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from dit_edu.interpolant import Interpolant
from dit_edu.lab.charts import Curves, Line, Table
from dit_edu.lab.experiments.sequence_loss import half, prior
from dit_edu.lab.panels import Axis, Images
from dit_edu.lab.widgets import Figure
from dit_edu.patchify import patchify, unpatchify

STEPS = tuple(range(50, 1000, 100))
SHOWN = (3, 0)  # the digits
DRAWS = 32  # of noise, for the means over t


def _page(q, tokens: Tensor, known: Tensor, i: int) -> Tensor:
    """The first i patches of ``known`` and patch i of ``tokens``, (B, N, P) each; then grey."""
    page = torch.zeros_like(known)
    page[:, :i], page[:, i] = known[:, :i], tokens[:, i]
    return unpatchify(page, q.p, q.grid)  # (B, C, H, W)


@torch.no_grad()
def next_patch(model: nn.Module, process: Interpolant) -> Figure:
    """A digit patch by patch: what the prior expects, what a model guesses, and the divergence.

    Args:
        model: a denoiser of the digits.
        process: the process it was trained for.
    """
    q, (images, labels) = prior("digits"), half("digits", "heldout")
    which = [int((labels == digit).nonzero()[0]) for digit in SHOWN]
    x0, y = images[which], labels[which]  # (digits, 1, 8, 8)
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(DRAWS, *x0.shape[1:], generator=g)
    guesses = []
    for step in STEPS:
        t = torch.full((DRAWS * len(x0),), step)
        x_t = process.q_sample(x0.repeat_interleave(DRAWS, 0), t, noise.repeat(len(x0), 1, 1, 1))
        out = model(x_t, t, y.repeat_interleave(DRAWS))
        guesses.append(process.to_x0(out[:, : x0.shape[1]], x_t, t))
    guess = torch.stack(guesses).unflatten(1, (len(x0), DRAWS)).transpose(0, 1)
    truth = x0[:, None, None].expand_as(guess)  # (digits, steps, draws, 1, 8, 8)
    nats = q.kl(guess.flatten(0, 2), truth.flatten(0, 2)).unflatten(0, guess.shape[:3])
    least = q.kl(x0, x0)  # (digits, N): the guess is the truth
    far = q.surprise(x0, x0).square().sum(2) / 2  # (digits, N), the part that depends on the guess
    width = least - far
    known, means, said = patchify(x0, q.p), q.means(x0), patchify(guess[:, :, 0].flatten(0, 1), q.p)
    variance = (q.factors @ q.factors.mT).diagonal(dim1=1, dim2=2)  # (N, P)
    spread, n = variance.sqrt().expand_as(means), len(variance)
    said = said.unflatten(0, guess.shape[:2])  # (digits, steps, N, P), of the first draw
    frames, rows = [], []
    for i in range(n):
        pages = [
            _page(q, tokens, known, i)
            for tokens in (torch.zeros_like(known), means - spread, means, means + spread)
        ]
        guessed = [_page(q, said[:, k], known, i) for k in range(len(STEPS))]
        frames.append(
            torch.stack([torch.stack([*pages, page, x0], 1) for page in guessed], 1)
        )  # (digits, steps, 6, 1, 8, 8)
        rows.append(
            [
                _cells(nats[d, :, 0, i] - width[d, i], far[d, i], width[d, i])
                for d in range(len(SHOWN))
            ]
        )
    mean = nats.mean(2)  # (digits, steps, N)
    of_patch = mean.transpose(1, 2).numpy()  # (digits, N, steps)
    return Figure(
        name="next-patch",
        title="What comes next?",
        caption="A digit is read patch by patch. From the patches so far a Gaussian prior "
        "foretells the next one: its mean, and one standard deviation of each pixel to either "
        "side. The model guesses the same patch from the noisy digit. Move the patch. The "
        "divergence says how far the guess is from what was foretold. The table is for this draw "
        f"of the noise, the curves are means over {DRAWS} draws. The dotted line is what even the "
        "true patch pays.",
        alt="Six small pictures of a digit that is uncovered patch by patch: so far, the darkest, "
        "the mean and the brightest next patch that the prior expects, the model's next patch, "
        "and the whole digit; a table of the divergence; and its curve over t.",
        axes=[
            Axis("digit", "digit", list(SHOWN), choice=True),
            Axis("t", "t", list(STEPS), start=3),
            Axis("patch", "patch", list(range(n)), [str(i + 1) for i in range(n)], start=6),
        ],
        play="patch",
        panels=[
            Images(
                title="The digit so far, and its next patch",
                alt="The same digit six times, uncovered up to a patch that differs.",
                axes=("digit", "t", "patch"),
                frames=torch.stack(frames, 2)[:, :, :, None].clamp(-1, 1).numpy(),
                column_labels=[
                    "so far",
                    "prior, less",
                    "prior's mean",
                    "prior, more",
                    "model's guess",
                    "the digit",
                ],
                wide=True,
                levels=17,
            ),
            Table(
                title="The divergence of this patch",
                alt="Its parts in nats, for the model's guess and for the true patch.",
                axes=("digit", "t", "patch"),
                columns=("nats", "the guess", "the truth"),
                rows=np.moveaxis(np.array(rows, dtype=object), 0, 2),  # patches come last
            ),
            Curves(
                title="The divergence over t",
                alt="Lines over t: this patch, the mean of all, and a level for the true patch.",
                axes=("digit", "patch"),
                x=np.array(STEPS),
                x_label="t (0 is clean)",
                cursor="t",
                lines=[
                    Line("this patch", of_patch),
                    Line("mean of all patches", np.broadcast_to(
                        mean.mean(2)[:, None].numpy(), of_patch.shape)),
                    Line("this patch, true", np.broadcast_to(
                        least[:, :, None].numpy(), of_patch.shape)),
                ],
            ),
        ],
    )  # fmt: skip


def _cells(distance: Tensor, true_distance: Tensor, width: Tensor) -> list[list[list[str]]]:
    """The table at every step: two parts of the divergence, and their sum."""
    return [
        [
            ["distance", f"{d:.2f}", f"{true_distance:.2f}"],
            ["width", f"{width:.2f}", f"{width:.2f}"],
            ["divergence", f"{d + width:.2f}", f"{true_distance + width:.2f}"],
        ]
        for d in distance
    ]
