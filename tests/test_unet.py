"""The U-Net against diffusers itself, and the field that it sees against closed forms."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dit import DiT
from dit_edu.guidance import Guided
from dit_edu.lab.profile import count
from dit_edu.sampling import ddim_sample
from dit_edu.unet import UNet, receptive_field

F64 = torch.float64
SMALL = dict(
    input_size=8,
    in_channels=2,
    widths=(8, 16),
    layers=1,
    head_dim=4,
    num_groups=4,
    num_classes=5,
    learn_sigma=False,
)


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(**SMALL).double().eval()


def batch(n: int = 3, size: tuple[int, int] = (8, 8)) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 2, *size, generator=g, dtype=F64)
    return x, torch.tensor([0, 500, 999])[:n], torch.tensor([0, 3, 5])[:n]


def test_it_is_diffusers_network_with_one_label_more(unet):
    """Against UNet2DModel with its own label table; its only difference is the table's name."""
    stock = UNet2DModel(
        in_channels=2,
        out_channels=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=4,
        num_class_embeds=6,
    )
    name = "class_embedding.weight"
    weights = {
        key.replace("class_embedding.embedding_table.weight", name): value
        for key, value in unet.net.state_dict().items()
    }
    stock.load_state_dict(weights)
    x, t, y = batch()
    assert torch.equal(unet(x, t, y), stock.double().eval()(x, t, class_labels=y).sample)


@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize("size", [8, (8, 12)])
def test_one_interface(learn_sigma, size):
    unet = UNet(**{**SMALL, "input_size": size, "learn_sigma": learn_sigma}).double().eval()
    sides = (8, 8) if size == 8 else size
    assert unet.input_size == sides and unet.in_channels == 2 and unet.num_classes == 5
    x, t, y = batch(size=sides)
    out = unet(x, t, y)
    assert out.shape == (3, 4 if learn_sigma else 2, *sides) and out.dtype == F64
    torch.testing.assert_close(unet(x, t.double(), y), out)  # steps may be floats
    assert torch.equal(unet.null_condition(y), torch.full((3,), 5))
    torch.testing.assert_close(unet(x[1:2], t[1:2], y[1:2]), out[1:2])  # nobody reads neighbours
    assert not torch.allclose(unet(x, t, (y + 1) % 5), out)
    assert not torch.allclose(unet(x, t.flip(0), y)[0], out[0])


def test_training_drops_labels_and_evaluation_does_not(unet):
    embedder, (x, t, _) = unet.net.class_embedding, batch(1)
    y = torch.zeros(4000, dtype=torch.long)
    null, given = embedder.embedding_table.weight[5], embedder.embedding_table.weight[0]
    found = embedder.train()(y)
    dropped = (found == null).all(1)
    assert 0.08 < dropped.double().mean() < 0.12
    assert (found[~dropped] == given).all()
    assert torch.equal(unet.eval()(x, t, y[:1]), unet(x, t, y[:1]))


def test_losses_samplers_and_guidance_take_it(unet):
    diffusion = GaussianDiffusion.cosine(1000, prediction="v")
    x, t, y = batch()
    losses = diffusion.losses(unet, x, t, y)
    losses["loss"].sum().backward()
    assert all(p.grad is not None for p in unet.parameters())
    guided = Guided(unet, 2.0)
    cond, uncond = unet(x, t, y), unet(x, t, unet.null_condition(y))
    torch.testing.assert_close(guided(x, t, y), uncond + 2 * (cond - uncond))
    drawn = ddim_sample(guided, diffusion, (3, 2, 8, 8), y, steps=3, noise=x)
    assert drawn.shape == (3, 2, 8, 8) and drawn.isfinite().all()


def test_it_runs_without_values_and_compiles_as_one_graph(unet):
    with torch.device("meta"):
        meta = UNet(**SMALL)
        one = torch.zeros(1, dtype=torch.long)
        assert meta(torch.zeros(1, 2, 8, 8), one, one).shape == (1, 2, 8, 8)
    plain = UNet(**{**SMALL, "widths": (8,), "attention": False}).double().eval()
    torch.compiler.reset()  # what other tests have compiled counts against a limit
    compiled = torch.compile(plain, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*batch()), plain(*batch()))


def test_another_size_has_the_same_weights(unet):
    larger = unet.at_size((12, 16))
    assert larger.input_size == (12, 16) and unet.input_size == (8, 8)
    x, t, y = batch(size=(12, 16))
    torch.testing.assert_close(larger(x, t, y), unet.net(x, t, class_labels=y).sample)
    with pytest.raises(ValueError, match=r"x has shape \(3, 2, 12, 16\); allowed: \(B, 2, 8, 8\)"):
        unet(x, t, y)


def test_a_convolution_costs_its_weights_at_every_pixel():
    """Without attention, MACs are those of 3 × 3 and 1 × 1 kernels, and of what t and y become."""
    model = UNet(**{**SMALL, "widths": (8,), "attention": False})
    one = torch.zeros(1, dtype=torch.long)
    macs = count(model, torch.zeros(1, 2, 8, 8), one, one, repeats=0).macs
    # Kernels: in, five blocks of two (two of them read 16 channels, and have a 1 x 1 besides), out.
    kernels = 9 * (2 * 8 + 3 * 2 * 64 + 2 * (16 * 8 + 64) + 8 * 2) + 2 * 16 * 8
    vectors = 8 * 32 + 32 * 32 + 5 * 32 * 8  # two layers on t, and one in each block
    assert macs == 64 * kernels + vectors


# ---------------------------------------------------------------------- where a denoiser looks


class Kernel(nn.Module):
    """A denoiser that is one known convolution."""

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.kernel, padding=1)


def test_the_field_of_a_convolution_is_its_kernel_squared():
    kernel = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    field = receptive_field(Kernel(kernel), *batch(), pixel=(4, 2))
    want = torch.zeros(8, 8, dtype=F64)
    want[3:6, 1:4] = kernel.square().sum((0, 1)) / kernel.square().sum()
    torch.testing.assert_close(field, want)
    corner = receptive_field(Kernel(kernel), *batch(), pixel=(0, 0))
    inside = kernel[:, :, 1:, 1:].square()  # what a padded kernel still sees
    torch.testing.assert_close(corner[:2, :2], inside.sum((0, 1)) / inside.sum())


def test_the_field_is_that_of_finite_differences(unet):
    x, t, y = batch()
    field = receptive_field(unet, x, t, y, (3, 3))
    torch.testing.assert_close(field.sum(), torch.tensor(1.0, dtype=F64))
    h, energy = 1e-5, torch.zeros(8, 8, dtype=F64)
    with torch.no_grad():
        for c in range(2):
            for i in range(64):
                e = torch.zeros_like(x)
                e[:, c].view(3, 64)[:, i] = h
                g = (unet(x + e, t, y) - unet(x - e, t, y))[:, :, 3, 3] / (2 * h)
                energy.view(-1)[i] += g.square().sum(1).mean()
    torch.testing.assert_close(field, energy / energy.sum(), rtol=1e-5, atol=1e-9)


def test_a_fresh_dit_sees_its_own_patch_once_its_last_layer_is_awake():
    torch.manual_seed(0)
    dit = DiT(8, 2, 2, hidden_size=16, depth=2, num_heads=2, num_classes=5, learn_sigma=False)
    dit = dit.double().eval()
    with pytest.raises(ValueError, match=r"pixel=\(3, 3\) depends on no input"):
        receptive_field(dit, *batch(), pixel=(3, 3))
    nn.init.xavier_uniform_(dit.final_layer.linear.weight)
    field = receptive_field(dit, *batch(), pixel=(3, 3))
    assert (field[2:4, 2:4] > 0).all()
    torch.testing.assert_close(field[2:4, 2:4].sum(), torch.tensor(1.0, dtype=F64))


def test_a_fresh_unet_sees_its_neighbours_most(unet):
    field = receptive_field(unet, *batch(), pixel=(3, 3))
    assert (field > 0).all()  # group norms see all of an image
    assert field[2:5, 2:5].sum() > 2 * 9 / 64


def test_a_learnt_variance_is_left_out():
    torch.manual_seed(0)
    model = UNet(**{**SMALL, "learn_sigma": True}).double().eval()
    field = receptive_field(model, *batch(), pixel=(3, 3))
    with torch.no_grad():
        model.net.conv_out.weight[2:] = 0
    torch.testing.assert_close(receptive_field(model, *batch(), pixel=(3, 3)), field)


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size": 9}, r"input_size=9; allowed: multiples of 2"),
        ({"input_size": (8, 10), "widths": (8, 8, 8)}, r"input_size=\(8, 10\); .* of 4"),
        ({"input_size": 0}, r"input_size=0 must be an int >= 1"),
        ({"widths": ()}, r"widths=\(\) is empty"),
        ({"widths": (6, 16)}, r"widths=\(6, 16\); allowed: multiples of num_groups=4"),
        ({"head_dim": 5}, r"widths=\(8, 16\); allowed: a last width divisible by head_dim=5"),
        ({"layers": 0}, r"layers=0 must be an int >= 1"),
        ({"in_channels": 0}, r"in_channels=0 must be"),
        ({"num_classes": 0}, r"num_classes=0 must be"),
        ({"class_dropout_prob": 1.0}, r"dropout_prob=1.0 must lie in \[0, 1\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        UNet(**{**SMALL, **change})


def test_what_is_no_number_is_refused(unet):
    with pytest.raises(TypeError, match=r"widths='8'"):
        UNet(**{**SMALL, "widths": ("8", "16")})
    with pytest.raises(TypeError, match=r"input_size=8\.0"):
        unet.at_size((8.0, 8))
    with pytest.raises(ValueError, match=r"input_size=9; allowed: multiples of 2"):
        unet.at_size(9)


def test_what_does_not_fit_the_model_is_named(unet):
    x, t, y = batch()
    with pytest.raises(ValueError, match=r"x has shape \(3, 2, 8, 4\); allowed: \(B, 2, 8, 8\)"):
        unet(x[..., :4], t, y)
    with pytest.raises(ValueError, match=r"t \(2,\) and y \(3,\) must both have shape \(3,\)"):
        unet(x, t[:2], y)
    with pytest.raises(ValueError, match=r"t \(3,\) and y \(3, 1\) must both have shape"):
        unet(x, t, y[:, None])
    with pytest.raises(ValueError, match=r"pixel=\(8, 0\); allowed: below \(8, 8\)"):
        receptive_field(unet, x, t, y, (8, 0))
    with pytest.raises(ValueError, match="class_dropout_prob=0"):
        UNet(**{**SMALL, "class_dropout_prob": 0.0}).null_condition(y)
