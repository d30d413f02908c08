"""Perfect denoisers are what they claim: the mean over everything that could be there."""

import pytest
import torch

from dit_edu.lab.films import KNOWN, Ideal
from dit_edu.lab.moving import FRAMES, SIDE, moving_digits, paths
from dit_edu.lab.recipes import Process


@pytest.fixture(scope="module")
def asked():
    """A process, a few noisy videos at one step each, what is behind them, and their labels."""
    found, process = moving_digits("train"), Process().build()
    videos, labels = found.videos[:4], found.label[:4]
    t = torch.tensor([600, 700, 800, 900])
    noise = torch.randn(videos.shape, generator=torch.Generator().manual_seed(0))
    return process, process.q_sample(videos, t, noise), t, videos, labels


def few(process, known, keep=3):
    """A denoiser that knows a few digits of each class, so that all videos can be listed."""
    model = Ideal(process, known)
    chosen = torch.cat([torch.where(model.labels == y)[0][:keep] for y in range(10)])
    model.at, model.labels = model.at[:, chosen], model.labels[chosen]
    return model


def test_knowing_both_is_the_mean_over_all_videos(asked):
    process, x, t, _, labels = asked
    model = few(process, "both")
    got = process.to_x0(model(x, t, labels), x, t)
    for k in range(len(x)):
        pictures = model.at[:, model.labels == labels[k]]  # (9, 3, H, W)
        films = pictures[model.path].transpose(1, 2).flatten(0, 1)  # (72 · 3, F, H, W)
        signal, sigma = process.signal_noise(t[k : k + 1], x[:1])
        apart = (x[k] - signal[0] * films).square().sum((1, 2, 3))  # (72 · 3,)
        weights = (-apart.double() / (2 * sigma.double().item() ** 2)).softmax(0)
        want = torch.einsum("v,vfhw->fhw", weights.float(), films)
        assert torch.allclose(got[k, 0], want, atol=2e-3)


def test_knowing_nothing_sees_each_frame_by_itself(asked):
    process, x, t, _, labels = asked
    model = few(process, "nothing")
    other = x.clone()
    other[:, :, 1:] = torch.randn(x[:, :, 1:].shape, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(model(x, t, labels)[:, :, 0], model(other, t, labels)[:, :, 0], atol=1e-5)
    assert not torch.allclose(
        few(process, "digit")(x, t, labels)[:, :, 0],
        few(process, "digit")(other, t, labels)[:, :, 0],
    )


@pytest.mark.parametrize("known", KNOWN)
def test_weights_add_up(asked, known):
    process, x, t, _, labels = asked
    weights, pictures = few(process, known).weights(x[1, 0], t[1:2], int(labels[1]))
    assert weights.shape == (FRAMES, 9, 3) and pictures.shape == (9, 3, SIDE, SIDE)
    assert torch.allclose(weights.sum((1, 2)), torch.ones(FRAMES), atol=1e-5)
    if known in ("digit", "both"):  # the digit is the same in all frames
        share = weights.sum(1)
        assert torch.allclose(share, share[:1].expand_as(share), atol=1e-4)
    if known in ("path", "both"):  # only places from which there is a way
        assert torch.allclose(weights.sum(2).sum(0).sum(), torch.tensor(8.0), atol=1e-4)


def test_who_knows_more_errs_less(asked):
    process, x, t, videos, labels = asked
    error = {
        known: (process.to_x0(Ideal(process, known)(x, t, labels), x, t) - videos).square().mean()
        for known in KNOWN
    }
    assert error["both"] < error["path"] < error["nothing"]
    assert error["both"] < error["digit"] < error["nothing"]


def test_bad_names_are_told():
    with pytest.raises(ValueError, match="known='all'"):
        Ideal(Process().build(), "all")
    assert paths().shape == (72, FRAMES, 2)
