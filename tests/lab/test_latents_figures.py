"""The figure of the noisy latents against the closed forms, and against its own parts."""

from __future__ import annotations

import numpy as np
import torch

from dit_edu.lab import zoo
from dit_edu.lab.figures import latent_noise
from dit_edu.lab.figures.latents import RANGE, SCALES


def test_latent_noise_is_the_closed_form():
    figure = latent_noise()
    ts = np.array(figure.axes[0].values)
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    ab = np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))[ts]  # Nichol & Dhariwal 2021
    pixels, decoded, latents, curves = figure.panels
    for line, s in zip(curves.lines, SCALES.values(), strict=True):
        ratio = s**2 * ab / (1 - ab)  # the SNR of latents s times larger
        np.testing.assert_allclose(line.y, ratio / (1 + ratio), rtol=1e-6)
    # √ᾱ z + √(1-ᾱ) ε / s: two steps of unit latents give z and ε, and all others must agree.
    x = np.asarray(latents.frames, dtype=np.float64)[:, :, 0, :, 0] * RANGE  # (scales, k, 4, 8, 8)
    a, b = np.sqrt(ab), np.sqrt(1 - ab)
    inside = np.abs(x).max((0, 1)) < RANGE - 1e-3  # nothing was cut off: (4, 8, 8)
    mix = np.array([[a[2], b[2]], [a[6], b[6]]])
    z, noise = np.linalg.solve(mix, x[1, [2, 6]][:, inside])
    for i, s in enumerate(SCALES.values()):
        for k in range(len(ts)):
            np.testing.assert_allclose(x[i, k][inside], a[k] * z + b[k] / s * noise, atol=1e-4)
    # What is decoded is what the maps show, where those are not cut off.
    vae, _ = zoo.load("shapes-vae")
    whole = torch.from_numpy(x[2, :3]).float()
    shown = np.asarray(decoded.frames)[2, :3, 0, 0]
    if np.abs(x[2, :3]).max() < RANGE:
        np.testing.assert_allclose(vae.decode(whole), shown, atol=1e-3)
    clean = np.asarray(pixels.frames)[0, 0, 0]
    assert np.abs(shown[0] - clean).mean() < 0.1
