"""Guidance against two separate calls, and against its equivalence over ε, x_0 and v."""

from __future__ import annotations

import pytest
import torch

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dit import DiT
from dit_edu.guidance import Guided


def model(**changes) -> DiT:
    torch.manual_seed(0)
    settings = dict(
        input_size=8, in_channels=4, hidden_size=32, depth=2, num_heads=4, num_classes=10,
        learn_sigma=False,
    )  # fmt: skip
    net = DiT(**{**settings, **changes}).double().eval()
    for parameter in net.parameters():
        parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
    return net


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.tensor([0, 500, 999]), torch.tensor([1, 2, 3])


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 4.0])
def test_equals_two_calls(scale):
    net, (x, t, y) = model(), inputs()
    cond, uncond = net(x, t, y), net(x, t, torch.full_like(y, 10))
    want = uncond + scale * (cond - uncond)
    torch.testing.assert_close(Guided(net, scale)(x, t, y), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_three_channels_equal_the_published_rule(learn_sigma):
    net, (x, t, y) = model(learn_sigma=learn_sigma), inputs()
    doubled = net.forward_with_cfg(
        torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, net.null_condition(y)]), 4.0
    )
    ours = Guided(net, 4.0, channels=3)(x, t, y)
    torch.testing.assert_close(ours, doubled[:3], rtol=1e-10, atol=1e-10)
    # Channel 3 is not guided there, and is here.
    assert not torch.allclose(Guided(net, 4.0)(x, t, y)[:, 3], doubled[:3, 3])


def test_published_rule_reads_the_first_half_only():
    net, (x, t, y) = model(), inputs()
    both = torch.cat([y, net.null_condition(y)])
    a = net.forward_with_cfg(torch.cat([x, x]), torch.cat([t, t]), both, 2.0)
    b = net.forward_with_cfg(torch.cat([x, 0 * x]), torch.cat([t, t]), both, 2.0)
    assert torch.equal(a, b)
    assert torch.equal(a[:3, :3], a[3:, :3])


def test_variance_is_never_guided():
    net, (x, t, y) = model(learn_sigma=True), inputs()
    torch.testing.assert_close(Guided(net, 3.0)(x, t, y)[:, 4:], net(x, t, y)[:, 4:])


@pytest.mark.parametrize("other", ["x0", "v"])
def test_guiding_noise_guides_image_and_velocity(other):
    """uncond + s (cond - uncond) commutes with the conversions, because they are affine."""
    x, t, _ = inputs()
    eps_c, eps_u = torch.randn(2, *x.shape, dtype=torch.float64)
    diffusion = GaussianDiffusion.linear(1000)
    convert = getattr(diffusion, f"to_{other}")
    guided_after = convert(eps_u + 3 * (eps_c - eps_u), x, t)
    c, u = convert(eps_c, x, t), convert(eps_u, x, t)
    torch.testing.assert_close(u + 3 * (c - u), guided_after, rtol=1e-9, atol=1e-9)


def test_guided_is_a_denoiser():
    net = model()
    guided = Guided(net, 2.0)
    assert guided.num_classes == 10
    assert guided.null_condition(torch.tensor([4])).tolist() == [10]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(scale=float("nan")), "scale=nan"),
        (dict(scale=float("inf")), "scale=inf"),
        (dict(scale=2.0, channels=0), "channels=0"),
        (dict(scale=2.0, channels=5), "channels=5"),
        (dict(scale=2.0, channels="some"), "channels='some'"),
    ],
)
def test_bad_input_is_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        Guided(model(), **arguments)


def test_model_without_null_class_says_so():
    x, t, y = inputs()
    with pytest.raises(ValueError, match="class_dropout_prob=0"):
        Guided(model(class_dropout_prob=0.0), 2.0)(x, t, y)
