"""Space-time tokens: an exact cut, attention that sees what it should, and MACs in closed form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dit_edu.attention import Attention, record_attention
from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dit import DiT
from dit_edu.guidance import Guided
from dit_edu.lab.profile import count
from dit_edu.patchify import patchify
from dit_edu.positions import sincos_time_embed
from dit_edu.sampling import ddim_sample
from dit_edu.scaling import Architecture
from dit_edu.video import (
    ATTENTION,
    Along,
    VideoDiT,
    attention_pairs,
    crossover_frames,
    patchify_video,
    unpatchify_video,
)
from dit_edu.video_unet import VideoUNet

SMALL = dict(hidden_size=16, depth=2, num_heads=2, num_classes=10, learn_sigma=False)


def awake(model, seed=0):
    """A model whose answers depend on everything: no gate and no last layer at zero."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.abs().max() == 0:
            nn.init.normal_(parameter, std=0.2)
    return model.double().eval()


def video_dit(attention="joint", size=(4, 8, 8), **settings):
    return awake(VideoDiT(size, 4, attention=attention, **{**SMALL, **settings}))


def batch(size=(4, 8, 8), n=2, channels=1):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, channels, *size, generator=g, dtype=torch.float64)
    return x, torch.tensor([100, 900][:n]), torch.tensor([3, 10][:n])


@settings(max_examples=30, deadline=None)
@given(
    f=st.integers(1, 3), p=st.integers(1, 3), c=st.integers(1, 3),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
)  # fmt: skip
def test_nothing_is_lost(f, p, c, grid):
    g, h, w = grid
    x = torch.randn(2, c, g * f, h * p, w * p)
    tokens = patchify_video(x, f, p)
    assert tokens.shape == (2, g * h * w, f * p * p * c)
    assert torch.equal(unpatchify_video(tokens, f, p, grid), x)
    # One frame to a token: the tokens are those of the frames as pictures, one after the other.
    if f == 1:
        frames = torch.cat([patchify(frame, p) for frame in x.unbind(2)], dim=1)
        assert torch.equal(tokens, frames)


@pytest.mark.parametrize("f, p", [(1, 4), (2, 4), (2, 2)])
def test_embedding_is_a_strided_convolution_in_three_dimensions(f, p):
    x = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64)
    conv = nn.Conv3d(3, 16, (f, p, p), stride=(f, p, p)).double()
    want = conv(x).flatten(2).transpose(1, 2)  # (B, D, g, h, w) -> (B, N, D)
    weight = conv.weight.permute(0, 2, 3, 4, 1).flatten(1)  # (D, C, f, p, q) -> (D, f p q C)
    assert torch.allclose(patchify_video(x, f, p) @ weight.T + conv.bias, want, atol=1e-12)
    # and it is what the model's own embedding does with the strip
    model = VideoDiT((4, 8, 8), p, f, 3, **SMALL).double()
    seen = []
    model.net.x_embedder.register_forward_hook(lambda m, a, out: seen.append(out))
    model(x, *batch()[1:])
    own = model.net.x_embedder.proj  # (D, f·C, p, p)
    weight = own.weight.unflatten(1, (f, 3)).permute(0, 1, 3, 4, 2).flatten(1)
    assert torch.allclose(patchify_video(x, f, p) @ weight.T + own.bias, seen[0], atol=1e-12)


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: patchify_video(torch.zeros(1, 1, 8, 8), 1, 2), "B, C, F, H, W"),
        (lambda: patchify_video(torch.zeros(1, 1, 3, 8, 8), 2, 2), "f=2"),
        (lambda: patchify_video(torch.zeros(1, 1, 4, 8, 6), 2, 4), "p=4"),
        (lambda: unpatchify_video(torch.zeros(1, 8, 15), 2, 2, (2, 2, 2)), r"8\*C"),
        (lambda: sincos_time_embed(5, 3), "dim=5"),
        (lambda: VideoDiT(attention="both"), "attention='both'"),
        (lambda: Along(nn.Identity(), 2, "depth"), "axis='depth'"),
        (lambda: attention_pairs("some", 1, 2, 3), "attention='some'"),
        (lambda: crossover_frames(8, 1), "places=1"),
        (lambda: video_dit()(torch.zeros(1, 1, 8, 8), *batch()[1:]), r"\(B, 1, 4, 8, 8\)"),
        (lambda: VideoUNet((4, 9, 8), widths=(4, 8), num_groups=4), "input_size"),
    ],
)
def test_bad_input_is_named(call, word):
    with pytest.raises(ValueError, match=word):
        call()


def test_joint_is_the_dit_of_images_on_the_film_strip():
    x, t, y = batch()
    model = video_dit()
    plain = DiT((32, 8), 4, 1, positions="none", **SMALL).double().eval()
    weights = {k: v for k, v in model.net.state_dict().items() if k != "pos_embed"}
    plain.load_state_dict(weights)
    plain.pos_embed = model.net.pos_embed
    want = plain(x.flatten(2, 3), t, y)  # frames below each other
    assert torch.allclose(model(x, t, y).flatten(2, 3), want, atol=1e-12)


def test_each_token_knows_its_place_and_its_time():
    table = video_dit(size=(4, 8, 8)).net.pos_embed[0].unflatten(0, (4, 4))  # (F, S, D)
    step = table[:, 1] - table[:, 0]  # from place to place, the same in all frames
    assert torch.allclose(step, step[:1], atol=1e-5)
    assert torch.pdist(table.flatten(0, 1)).min() > 1e-3
    times = sincos_time_embed(16, 8)
    assert torch.allclose(times[5] @ times[3], times[2] @ times[0], atol=1e-5)  # only the distance


def influence(model, size=(4, 8, 8)):
    """Which frames of the input each frame of the answer depends on: (F, F) booleans."""
    x, t, y = batch(size, n=1)
    x.requires_grad_()
    out = model(x, t, y)
    rows = [
        torch.autograd.grad(out[:, :, k].sum(), x, retain_graph=True)[0] for k in range(size[0])
    ]
    return torch.stack(rows)[:, 0, 0].abs().sum((-1, -2)) > 0


@pytest.mark.parametrize("attention", ATTENTION)
def test_who_hears_of_whom(attention):
    told = influence(video_dit(attention))
    assert torch.equal(
        told, torch.eye(4).bool() if attention == "frames" else torch.ones(4, 4).bool()
    )


def test_frames_alone_are_pictures_alone():
    # Tokens of a frame with its own positions through the same blocks, one frame at a time.
    x, t, y = batch()
    model = video_dit("frames")
    whole = model(x, t, y)
    for k in range(4):
        other = torch.randn_like(x)
        other[:, :, k] = x[:, :, k]
        assert torch.allclose(model(other, t, y)[:, :, k], whole[:, :, k], atol=1e-12)


@pytest.mark.parametrize("axis", ["space", "time"])
def test_short_sequences_are_a_mask_on_the_long_one(axis):
    torch.manual_seed(0)
    inner = Attention(16, 2).double()
    x = torch.randn(3, 12, 16, dtype=torch.float64)  # 3 frames of 4 places
    frame, place = torch.arange(12) // 4, torch.arange(12) % 4
    of = frame if axis == "space" else place
    mask = of[:, None] == of[None]
    along = Along(inner, 3, axis)
    assert torch.allclose(along(x), inner(x, mask=mask), atol=1e-12)
    with record_attention(along) as seen:
        along(x)
    assert seen[0].shape[-1] == (4 if axis == "space" else 3)


def test_one_samples_condition_stays_its_own():
    class Told(nn.Module):
        def forward(self, x, *, cond=None, mask=None):
            return x + cond.unsqueeze(1)

    x, cond = torch.zeros(2, 6, 4), torch.tensor([[1.0] * 4, [2.0] * 4])
    for axis in ("space", "time"):
        assert torch.equal(Along(Told(), 2, axis)(x, cond=cond), cond.unsqueeze(1).expand(2, 6, 4))


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("depth", [2, 3])
def test_macs_have_a_closed_form(attention, depth):
    model = VideoDiT((6, 8, 8), 4, attention=attention, **{**SMALL, "depth": depth}).eval()
    x = torch.zeros(1, 1, 6, 8, 8)
    found = count(model, x, torch.tensor([5]), torch.tensor([1]), repeats=0).macs
    strip = Architecture(
        input_size=(48, 8), patch_size=4, in_channels=1, **{**SMALL, "depth": depth}
    )
    parts = strip.macs()
    pairs = attention_pairs(attention, depth, 6, 4)
    assert parts["pairs"] == 2 * 16 * attention_pairs("joint", depth, 6, 4)
    assert found == sum(parts.values()) - parts["pairs"] + 2 * 16 * pairs


def test_from_so_many_frames_on_joint_costs_more():
    for dim, places in ((48, 16), (1152, 256)):
        frames = crossover_frames(dim, places)

        def costs(f, dim=dim, places=places):
            joint = 12 * dim**2 * f * places + 2 * dim * (f * places) ** 2
            two = 24 * dim**2 * f * places + 2 * dim * attention_pairs("factorized", 2, f, places)
            return joint, two

        below, above = costs(int(frames)), costs(int(frames) + 1)
        assert below[0] <= below[1] and above[0] > above[1]


@pytest.mark.parametrize("tubelet, learn_sigma", [(1, False), (2, True)])
def test_shapes_gates_and_null_class(tubelet, learn_sigma):
    settings = {**SMALL, "learn_sigma": learn_sigma}
    model = VideoDiT((4, 8, 8), 4, tubelet, 3, **settings)
    x = torch.randn(2, 3, 4, 8, 8)
    out = model(x, torch.tensor([3, 4]), torch.tensor([0, 10]))
    assert out.shape == (2, 6 if learn_sigma else 3, 4, 8, 8)
    assert out.abs().max() == 0  # as published, the last layer starts at zero
    assert model.null_condition(torch.tensor([1, 2])).tolist() == [10, 10]


def test_variance_channels_stand_behind_the_mean():
    model = VideoDiT((4, 8, 8), 4, 2, 3, **{**SMALL, "learn_sigma": True})
    with torch.no_grad():  # bias (p, q, out): the first f·C outputs are the mean
        bias = model.net.final_layer.linear.bias.view(4, 4, 12)
        bias[..., :6] = 1.0
    out = model(torch.zeros(1, 3, 4, 8, 8), torch.tensor([3]), torch.tensor([0]))
    assert (out[:, :3] == 1).all() and (out[:, 3:] == 0).all()


def test_losses_samplers_and_guidance_take_videos():
    process, model = GaussianDiffusion.cosine(1000, prediction="v"), video_dit().float()
    x, t, y = (part.float() if part.is_floating_point() else part for part in batch())
    assert process.losses(model, x, t, y)["loss"].shape == (2,)
    guided = Guided(model, 2.0, interval=(0, 500))
    drawn = ddim_sample(guided, process, (2, 1, 4, 8, 8), y * 0, steps=2)
    assert drawn.shape == (2, 1, 4, 8, 8)


def test_a_fresh_unet_knows_no_time_and_a_trained_one_does():
    model = VideoUNet((4, 8, 8), widths=(4, 8), num_groups=4, layers=1, head_dim=4,
                      num_classes=10, learn_sigma=False)  # fmt: skip
    model = model.double().eval()
    assert torch.equal(influence(model), torch.eye(4).bool())
    assert influence(awake(model)).all()
    x, t, y = batch()
    assert model(x, t, y).shape == x.shape
    with pytest.raises(ValueError, match="x has shape"):
        model(x[0], t, y)
