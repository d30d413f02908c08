"""Temperature and windows by noise: the notes' numbers, and a DiT that gets them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dit_edu.attention import Attention, attention_weights, naive_attention, record_attention
from dit_edu.dit import DiT
from dit_edu.noise_attention import (
    TEMPERATURES,
    WINDOWS,
    LearnedTemperature,
    NoiseAwareDiT,
    NoiseMask,
)
from dit_edu.schedules import cosine_betas, linear_betas

SMALL = dict(
    input_size=8,
    patch_size=2,
    in_channels=1,
    hidden_size=16,
    depth=2,
    num_heads=2,
    num_classes=3,
    learn_sigma=False,
)
OPTIONS = [
    *({"temperature": name} for name in (*TEMPERATURES, "learned")),
    *({"window": name} for name in WINDOWS),
    {"temperature": "sharper-at-low-noise", "window": "as-written"},
    {"temperature": "learned", "window": "wide-at-noise", "least": 2},
]


def awake(model: nn.Module) -> nn.Module:
    """Weights that are not zero, in float64, in evaluation mode."""
    g = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=g)
    return model.double().eval()


def batch(n: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 1, 8, 8, dtype=torch.float64, generator=g)
    return x, torch.tensor([0, 300, 700, 999])[:n], torch.arange(n) % 3


# ---------------------------------------------------------------------- the rules


def test_temperature_as_written_runs_from_008_to_113_on_the_linear_schedule():
    factor = TEMPERATURES["as-written"](linear_betas(1000), 64)
    assert factor[0].item() == pytest.approx(0.08, abs=1e-12)  # sqrt(1e-4 · 64)
    assert factor[-1].item() == pytest.approx(math.sqrt(1.28), abs=1e-12)  # sqrt(0.02 · 64)


def test_temperature_as_summed_up_runs_from_100_to_7():
    factor = TEMPERATURES["as-summed-up"](linear_betas(1000), 64)
    assert factor[0].item() == pytest.approx(100.0, abs=1e-9)
    assert factor[-1].item() == pytest.approx(1 / math.sqrt(0.02), abs=1e-9)  # 7.07


def test_the_definition_and_its_summary_are_opposite_in_t():
    betas = linear_betas(1000)
    product = TEMPERATURES["as-written"](betas, 64) * TEMPERATURES["as-summed-up"](betas, 64)
    torch.testing.assert_close(product, torch.full_like(betas, 8.0))  # sqrt(d), whatever t


def test_as_written_is_the_formula_letter_by_letter():
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(5, 64, dtype=torch.float64, generator=g) for _ in range(2))
    betas = linear_betas(1000)
    for t in (0, 500, 999):
        temp = 1 / torch.sqrt(betas[t] * 64)
        want = (q @ k.T / (math.sqrt(64) * temp)).softmax(-1)
        got = attention_weights(q, k, factor=TEMPERATURES["as-written"](betas, 64)[t])
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("make", [linear_betas, cosine_betas])
def test_the_corrected_pair_is_monotone_and_one_is_the_inverse_of_the_other(make):
    low = TEMPERATURES["sharper-at-low-noise"](make(1000), 64)
    high = TEMPERATURES["sharper-at-high-noise"](make(1000), 64)
    assert (low.diff() < 0).all() and low[0] > 1.9 and low[-1] < 0.51
    torch.testing.assert_close(low * high, torch.ones_like(low))


def test_windows_as_written_narrow_to_a_single_token_where_all_is_noise():
    t = torch.tensor([0, 500, 999])
    narrow = NoiseAwareDiT(window="as-written", **SMALL).reach(t)
    alpha = (1 - cosine_betas(1000)).cumprod(0).sqrt()
    assert narrow.tolist() == [math.ceil(alpha[i] * 16) for i in t]  # k = ceil(α_t N)
    assert narrow[0] == 16 and narrow[-1] == 1
    assert NoiseAwareDiT(window="wide-at-noise", **SMALL).reach(t).tolist() == [1, 3, 4]
    assert NoiseAwareDiT(window="fixed", least=2, **SMALL).reach(t).tolist() == [2, 2, 2]


def test_the_multiplied_mask_masks_nothing():
    torch.manual_seed(0)
    mask, emb = NoiseMask(16).double(), torch.randn(1, 16, dtype=torch.float64)
    near = torch.eye(4, dtype=torch.bool)[None, None]
    factor = mask(emb, near)
    inside = mask.mlp(emb).sigmoid().item()
    assert 0 < inside < 1
    assert factor[0, 0].diagonal().tolist() == [inside] * 4 and factor.sum() == 4 * inside
    q = torch.randn(1, 1, 4, 8, dtype=torch.float64)
    weights = attention_weights(q, q, factor=factor)[0, 0]
    share = 3 / (3 + (inside * q.square().sum(-1) / math.sqrt(8)).exp())  # 3 of weight exp(0)
    torch.testing.assert_close(1 - weights.diagonal(), share[0, 0])


def test_a_learned_temperature_starts_at_one_and_knows_layers_and_heads():
    emb = torch.randn(3, 16)
    fresh = LearnedTemperature(16, 4, 2)
    assert fresh(emb).shape == (4, 3, 2, 1, 1) and (fresh(emb) == 1).all()
    nn.init.normal_(fresh.linear.weight)
    want = fresh.linear(nn.functional.silu(emb)).exp()  # (B, L h)
    torch.testing.assert_close(fresh(emb)[3, :, 1, 0, 0], want[:, 3 * 2 + 1])


def test_scale_of_a_modulated_norm_is_a_temperature_already():
    """Without biases, tokens scaled by s have logits scaled by s²."""
    torch.manual_seed(0)
    module, x = Attention(16, 2, qkv_bias=False).double(), torch.randn(2, 5, 16).double()
    s = torch.tensor([0.5, 3.0], dtype=torch.float64)[:, None, None]
    q, k, v = module.project(x)
    want = naive_attention(q, k, s[..., None] * v, factor=s[..., None] ** 2)
    got = naive_attention(*module.project(s * x))
    torch.testing.assert_close(got, want)


# ---------------------------------------------------------------------- attention's options


@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 5, 5)])
def test_a_factor_is_multiplied_onto_the_logits(shape):
    torch.manual_seed(0)
    module, x = Attention(16, 2).double(), torch.randn(3, 5, 16).double()
    factor = torch.rand(shape, dtype=torch.float64) * 3
    q, k, v = module.project(x)
    want = ((q @ k.mT) / math.sqrt(8) * factor).softmax(-1)
    with record_attention(module) as weights:
        out = module(x, factor=factor)
    torch.testing.assert_close(weights[0], want)
    torch.testing.assert_close(out, module.proj((want @ v).transpose(1, 2).flatten(2)))


# ---------------------------------------------------------------------- the model


@pytest.mark.parametrize("options", [{}, {"temperature": "learned"}, {"window": "wide-at-noise"}])
def test_start_values_are_those_of_a_dit(options):
    torch.manual_seed(3)
    want = DiT(**SMALL).state_dict()
    torch.manual_seed(3)
    got = NoiseAwareDiT(**options, **SMALL).state_dict()
    new = {name for name in got if name not in want}
    assert all(name.startswith("learned.") for name in new)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_without_options_it_is_a_dit():
    model, aware = awake(DiT(**SMALL)), NoiseAwareDiT(**SMALL).double().eval()
    aware.load_state_dict(model.state_dict())
    assert torch.equal(model(*batch()), aware(*batch()))


@pytest.mark.parametrize("options", OPTIONS)
def test_a_batch_of_mixed_steps_is_its_images_one_by_one(options):
    model, (x, t, y) = awake(NoiseAwareDiT(**options, **SMALL)), batch()
    together = model(x, t, y)
    for i in range(len(t)):
        alone = model(x[i : i + 1], t[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_changes_the_answer(options):
    model = awake(NoiseAwareDiT(**options, **SMALL))
    plain = NoiseAwareDiT(**SMALL).double().eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    assert (model(*batch()) - plain(*batch())).abs().max() > 1e-6


@pytest.mark.parametrize("conditioning", ["cross-attention", "adaln", "adaln-single", "additive"])
def test_every_kind_of_block_takes_them(conditioning):
    options = {"temperature": "as-written", "window": "fixed", "least": 2}
    model = awake(NoiseAwareDiT(**options, **SMALL, conditioning=conditioning))
    (x, t, y), far = batch(1), batch(1)[0]
    far[..., 6:, 6:] += 1  # a corner: in two blocks of windows it reaches 2 tokens each
    with record_attention(model) as weights:
        moved = model(far, t, y) - model(x, t, y)
    assert moved[..., :1, :1].abs().max() < 1e-12 < moved[..., 6:, 6:].abs().max()
    assert (weights[0][0, :, 0] > 0).sum(-1).tolist() == [4, 4]  # the corner token's square


def test_larger_images_get_wider_windows():
    model = NoiseAwareDiT(window="wide-at-noise", **SMALL)
    t = torch.tensor([999])
    assert (model.reach(t), model.at_size(16).reach(t)) == (4, 8)


def test_gathered_windows_give_the_same_answer():
    settings = {**SMALL, "input_size": 64}
    options = {"window": "fixed", "least": 2}
    model = awake(NoiseAwareDiT(**options, **settings))
    other = NoiseAwareDiT(**options, way="gathered", **settings).double().eval()
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 1, 64, 64, dtype=torch.float64)
    args = x, torch.tensor([5, 900]), torch.tensor([0, 1])
    torch.testing.assert_close(model(*args), other(*args), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"window": "open"}, "window"),
        ({"schedule": "quadratic"}, "schedule"),
        ({"least": 0}, "least"),
        ({"window": "fixed", "conditioning": "in-context"}, "no place; allowed"),
    ],
)
def test_bad_options_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        NoiseAwareDiT(**{**SMALL, **change})
