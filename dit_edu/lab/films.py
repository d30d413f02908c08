"""What a perfect denoiser of moving digits could do, by how much it may know of time.

The training digits and the paths they can take are known, so the best answer to a noisy video is
too: the mean of all videos that could be behind it, weighted by how well they fit. Who knows less
of time averages over more. Four levels of knowledge are a digit that is the same in all frames or
not, and a path that obeys its law or not; nothing is trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dit_edu._checks import check_choice
from dit_edu.interpolant import Interpolant
from dit_edu.lab.data import digits
from dit_edu.lab.moving import FRAMES, SIDE, SPEED, paths

#: What is known of time, which is nothing, that the digit stays, that the path has a law, or both.
KNOWN = ("nothing", "digit", "path", "both")


class Ideal(nn.Module):
    """The best denoiser of videos of the training digits, given what it knows of time.

    Args:
        process: what noises the videos, and says what the answer means.
        known: a name of :data:`KNOWN`. ``"nothing"`` is the best that a model can be to which each
            frame is a picture of its own.

    Raises:
        ValueError: ``known`` is unknown.
    """

    num_classes, class_dropout_prob = 10, 0.0
    in_channels, input_size = 1, (FRAMES, SIDE, SIDE)

    def __init__(self, process: Interpolant, known: str = "both") -> None:
        super().__init__()
        self.process, self.known = process, check_choice("known", known, KNOWN)
        images, self.labels = digits("train")
        corners = range(0, SIDE - 7, SPEED)
        self.at = torch.full((len(corners) ** 2, len(images), SIDE, SIDE), -1.0)
        for j, (r, c) in enumerate((r, c) for r in corners for c in corners):
            self.at[j, :, r : r + 8, c : c + 8] = images[:, 0]
        place = paths() // SPEED  # (P, F, 2)
        self.path = place[..., 0] * len(corners) + place[..., 1]  # (P, F), the place by number

    def weights(self, x: Tensor, t: Tensor, label: int) -> tuple[Tensor, Tensor]:
        """How probable each place and digit is, in each frame, for one sample.

        Args:
            x: a noisy video, (F, H, W).
            t: its step, (1,).
            label: its class.

        Returns:
            Weights (F, places, digits), which add up to 1 in each frame, and the pictures that they
            are of, (places, digits, H, W).
        """
        pictures = self.at[:, self.labels == label].to(x)  # (J, K, H, W)
        signal, sigma = (float(s) for s in self.process.signal_noise(t, x[None, 0, 0, 0]))
        flat = pictures.flatten(2)  # (J, K, HW)
        cross = torch.einsum("fp,jkp->fjk", x.flatten(1), flat)
        energy = signal * cross - signal**2 * flat.square().sum(-1) / 2  # (F, J, K)
        fit = energy / sigma**2  # log-likelihood, but for what is the same for all
        frames, path = torch.arange(len(x)), self.path
        often = torch.stack([(path == j).sum(0) for j in range(len(pictures))], 1)  # (F, J)
        here = fit + often.log()[:, :, None]
        if self.known == "nothing":
            return here.flatten(1).softmax(1).view_as(fit), pictures
        if self.known == "digit":  # of each digit, all places of a frame
            digit = here.logsumexp(1).sum(0).softmax(0)  # (K,)
            return here.softmax(1) * digit, pictures
        along = fit[frames, path]  # (P, F, K): each frame where the path has it
        if self.known == "path":
            chosen = along.logsumexp(2).sum(1).softmax(0)  # (P,)
            share = along.softmax(2) * chosen[:, None, None]  # (P, F, K)
        else:
            chosen = along.sum(1).flatten().softmax(0).view(len(path), 1, -1)  # (P, 1, K)
            share = chosen.expand_as(along)
        found = torch.zeros_like(fit).transpose(0, 1).contiguous()  # (J, F, K)
        for f in frames:
            found[:, f].index_add_(0, path[:, f], share[:, f].contiguous())
        return found.transpose(0, 1), pictures

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The best answer to noisy videos ``x`` (B, 1, F, H, W) at steps ``t`` (B,), same shape."""
        means = []
        for video, step, label in zip(x[:, 0], t, y.tolist(), strict=True):
            weights, pictures = self.weights(video, step[None], label)
            means.append(torch.einsum("fjk,jkhw->fhw", weights, pictures))
        x0 = torch.stack(means)[:, None]  # (B, 1, F, H, W)
        signal, sigma = self.process.signal_noise(t, x)
        return self.process.target(x0, (x - signal * x0) / sigma, t)
