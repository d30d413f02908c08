"""Weights carried from large patches to small ones: the enlarged image, known resizes, grids."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dit_edu.dit import DiT
from dit_edu.hidit.multiscale import MultiscaleDiT
from dit_edu.hidit.progressive import carry, shrink_head, shrink_kernel
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.train import run, train
from dit_edu.patchify import patchify

SIZES = dict(
    input_size=16, patch_size=4, in_channels=3, hidden_size=32, depth=2, num_heads=4, num_classes=5,
    learn_sigma=False,
)  # fmt: skip


def model(kind: type[DiT] = DiT, **settings) -> DiT:
    torch.manual_seed(0)
    net = kind(**{**SIZES, **settings}).double().eval()
    for weight in net.parameters():
        if weight.requires_grad:
            weight.data = weight.data + 0.1 * torch.randn_like(weight)
    return net


def inputs(size: tuple[int, int] = (16, 16)) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(3, 3, *size, generator=g, dtype=torch.float64)
    return x, torch.tensor([3, 400, 990]), torch.tensor([0, 4, 5])


@pytest.mark.parametrize(
    ("kind", "settings", "patch_size"),
    [
        (DiT, {}, 2),
        (DiT, {}, 1),
        (DiT, {}, 4),
        (DiT, {"learn_sigma": True, "span": (8, 8)}, 2),
        (DiT, {"positions": "rope"}, 2),
        (DiT, {"input_size": (8, 24), "conditioning": "in-context"}, 2),
        (MultiscaleDiT, {"coarse_fraction": 0.5, "skip": "concat"}, 2),
    ],
)
def test_the_start_sees_the_image_enlarged(kind, settings, patch_size):
    """The model of large patches, on the image with every pixel r by r times, then means."""
    net = model(kind, **settings)
    x, t, y = inputs(net.input_size)
    r = net.patch_size // patch_size
    large = torch.kron(x, torch.ones(r, r, dtype=x.dtype))  # (B, C, rH, rW)
    want = F.avg_pool2d(net.at_size(tuple(large.shape[-2:]))(large, t, y), r)
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    got = carry(net, patch_size)
    torch.testing.assert_close(got(x, t, y), want, rtol=1e-10, atol=1e-12)
    assert got.patch_size == patch_size
    for name, weight in net.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_learned_positions_go_along():
    net = model(positions="learned")
    carried = carry(net, 2)
    table = net.pos_embed.detach()[0].T.reshape(1, 32, 4, 4)
    want = F.interpolate(table, (8, 8), mode="bicubic", align_corners=False)
    torch.testing.assert_close(carried.pos_embed[0], want[0].flatten(1).T)


def test_the_kernel_is_that_of_pseudo_inverse_resize():
    """Least squares over white patches: what K says of x, said of x's means alone."""
    kernel = model().x_embedder.proj.weight.detach()  # (D, C, 4, 4)
    eye = torch.eye(16, dtype=torch.float64).reshape(16, 1, 4, 4)
    means = F.avg_pool2d(eye, 2).flatten(1).T  # (4, 16): A, from a patch to its means
    want = torch.linalg.pinv(means).T @ kernel.flatten(2).mT  # (A⁺)ᵀ K: (D, 16, C) -> (D, 4, C)
    got = shrink_kernel(kernel, 2).flatten(2).mT
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_the_head_keeps_the_order_of_patchify():
    image = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    large = patchify(image, 4)[0, 0]  # (48,): what a head of p = 4 says
    small = patchify(F.avg_pool2d(image, 2), 2)[0, 0]
    torch.testing.assert_close(shrink_head(large, 2, 4), small)


def test_with_the_span_of_the_end_the_start_is_placed_like_a_fresh_model():
    start = carry(model(span=(8, 8)), 2)
    torch.testing.assert_close(start.pos_embed, model(patch_size=2).pos_embed)
    assert start.span == (8, 8)
    assert not torch.allclose(model().pos_embed, model(span=(8, 8)).pos_embed)


@pytest.mark.parametrize("patch_size", [3, 8, 0, -2])
def test_patches_must_divide(patch_size):
    with pytest.raises(ValueError, match="patch_size"):
        carry(model(), patch_size)


@pytest.mark.parametrize(("span", "error"), [((0, 8), ValueError), ((8.0, 8.0), TypeError)])
def test_a_span_is_a_grid(span, error):
    with pytest.raises(error, match="span"):
        model(span=span)


def test_patch_size_is_a_number():
    with pytest.raises(TypeError, match="patch_size"):
        carry(model(), 2.0)


def test_a_second_stage_goes_on_after_an_interruption(tmp_path):
    """Two stages in a row, the second one stopped and resumed: the same numbers."""
    sizes = {**SIZES, "input_size": 8, "in_channels": 1, "num_classes": 10}
    common = dict(name="stage", steps=4, batch_size=4, warmup=1)
    large = Recipe(model={**sizes, "span": [4, 4]}, **common)
    small = Recipe(model={**sizes, "patch_size": 2}, **common)
    start = carry(run(large, device="cpu", progress=False).model, 2)
    whole = run(small, device="cpu", progress=False, start=start).model
    for step in train(small, device="cpu", start=start, out=tmp_path):
        if step.step == 2:
            break
    again = run(small, device="cpu", progress=False, out=tmp_path, resume=True).model
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    first = next(train(small, device="cpu", start=start))
    assert first.loss < next(train(small, device="cpu")).loss  # what was carried is known
