"""The two layouts: the same function either way, there and back, and what does not fit is named."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiTTransformer2DModel

from dit_edu.conditioning import BLOCKS
from dit_edu.dit import DiT
from dit_edu.lab.convert import (
    correct,
    from_diffusers,
    state_from_diffusers,
    state_to_diffusers,
    to_diffusers,
)


def random_dit(**changes) -> DiT:
    settings = dict(input_size=8, hidden_size=48, depth=3, num_heads=4, num_classes=10)
    model = DiT(**{**settings, **changes})
    g = torch.Generator().manual_seed(1)
    for p in model.parameters():
        if p.requires_grad:
            p.data = torch.randn(p.shape, generator=g) * 0.15
    return model.eval()


def question(channels: int = 4, size: int = 8) -> tuple[torch.Tensor, ...]:
    x = torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(2))
    return x, torch.tensor([0, 411, 999]), torch.tensor([0, 9, 10])


@pytest.mark.parametrize(
    "changes",
    [{}, {"learn_sigma": False}, {"in_channels": 3, "patch_size": 4, "depth": 1, "num_heads": 2}],
    ids=["learned sigma", "fixed sigma", "another shape"],
)
def test_there_and_back_is_the_same_model(changes):
    model = random_dit(**changes)
    theirs = to_diffusers(model)
    back = from_diffusers(theirs)
    asked = question(model.in_channels)
    with torch.no_grad():
        want = model(*asked)
        torch.testing.assert_close(theirs(*asked).sample, want, rtol=0, atol=1e-6)
        assert torch.equal(back(*asked), want)
    assert want.shape[1] == (1 + changes.get("learn_sigma", True)) * model.in_channels
    assert list(back.state_dict()) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], tensor, rtol=0, atol=0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name, p in back.named_parameters() if p.requires_grad] == trained


def test_back_and_there_is_the_same_state():
    theirs = to_diffusers(random_dit())
    state = theirs.state_dict()
    again = state_to_diffusers(state_from_diffusers(state, 4))
    assert set(again) == set(state)
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


def test_converting_copies_and_draws_nothing():
    model = random_dit()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    theirs = to_diffusers(model)
    back = from_diffusers(theirs)
    assert torch.equal(torch.rand(1), expected)
    with torch.no_grad():
        for p in theirs.parameters():
            p.zero_()
    assert model.blocks[0].mlp.fc1.weight.any() and back.blocks[0].mlp.fc1.weight.any()


def test_float64_stays_float64():
    model = random_dit().double()
    x, t, y = question()
    got = to_diffusers(model)(x.double(), t, y).sample
    torch.testing.assert_close(got, model(x.double(), t, y), rtol=0, atol=1e-10)
    assert next(from_diffusers(to_diffusers(model)).parameters()).dtype == torch.float64


def test_a_saved_model_of_diffusers_comes_back(tmp_path):
    model = random_dit()
    to_diffusers(model).save_pretrained(tmp_path)
    stock = DiTTransformer2DModel.from_pretrained(tmp_path, local_files_only=True).eval()
    asked = question()
    with torch.no_grad():
        want = model(*asked)
        assert torch.equal(from_diffusers(stock)(*asked), want)
        # the exponent of the waves is no part of diffusers' configuration
        assert (stock(*asked).sample - want).abs().max() > 1e-3
        torch.testing.assert_close(correct(stock)(*asked).sample, want, rtol=0, atol=1e-6)


def test_stock_diffusers_is_another_function():
    """Each of the two constants alone makes a difference; a freshly made model has neither."""
    model, asked = random_dit(), question()
    with torch.no_grad():
        want = model(*asked)
        for name in ("waves", "eps"):
            theirs = to_diffusers(model)
            for block in theirs.transformer_blocks:
                if name == "waves":
                    block.norm1.emb.time_proj.downscale_freq_shift = 1
                else:
                    block.norm3.eps = 1e-5
            assert (theirs(*asked).sample - want).abs().max() > 2e-6, name


def without(state: dict, *names: str) -> dict:
    assert set(names) <= set(state)
    return {name: tensor for name, tensor in state.items() if name not in names}


OURS = random_dit(depth=2).state_dict()
THEIRS = to_diffusers(random_dit(depth=2)).state_dict()
COPY = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: state_to_diffusers({}), "published layout: no blocks.0 among its names .none"),
        (lambda: state_to_diffusers(THEIRS), "no blocks.0 .*'pos_embed.proj.weight'"),
        (lambda: state_from_diffusers(OURS, 4), "diffusers' layout: no transformer_blocks.0"),
        (lambda: state_to_diffusers(without(OURS, "blocks.1.attn.qkv.bias")),
         "lacks 'blocks.1.attn.qkv.bias'"),
        (lambda: state_to_diffusers(without(OURS, "pos_embed")), "lacks 'pos_embed'"),
        (lambda: state_to_diffusers({n: t for n, t in OURS.items() if "mlp" not in n}),
         "lacks 't_embedder.mlp.0.weight'.* and 9 more"),
        (lambda: state_to_diffusers({**OURS, "blocks.0.extra": torch.zeros(1)}),
         "has, unknown there, 'blocks.0.extra'"),
        (lambda: state_to_diffusers({**OURS, "pos_embed": OURS["pos_embed"] + 1}), "sines"),
        (lambda: state_to_diffusers({**OURS, "pos_embed": torch.zeros(1, 8, 48)}), "1, 8, 48"),
        (lambda: state_from_diffusers(without(THEIRS, "proj_out_2.bias"), 4),
         "lacks 'proj_out_2.bias'"),
        (lambda: state_from_diffusers({**THEIRS, "norm_out.weight": torch.zeros(1)}, 4),
         "unknown there, 'norm_out.weight'"),
        (lambda: state_from_diffusers({**THEIRS, COPY: THEIRS[COPY] + 1}, 4),
         "transformer_blocks.1.*embedding_table.* differs from the copy"),
        (lambda: to_diffusers(random_dit(input_size=(8, 4))), r"\(8, 4\) is not square"),
        (lambda: to_diffusers(random_dit(mlp_ratio=2.0)), "mlp_ratio=2;"),
        (lambda: to_diffusers(random_dit(class_dropout_prob=0.0)), "class_dropout_prob=0"),
        (lambda: to_diffusers(random_dit(positions="none")), "lacks 'pos_embed'"),
        (lambda: to_diffusers(random_dit(positions="learned")), "sines and cosines"),
        (lambda: to_diffusers(random_dit().at_size(16)), "sines and cosines"),
        (lambda: from_diffusers(DiTTransformer2DModel(2, 8, num_layers=1, activation_fn="gelu")),
         "activation_fn='gelu'"),
        (lambda: from_diffusers(DiTTransformer2DModel(2, 8, num_layers=1, out_channels=5)),
         "out_channels=5; allowed: 4 or, with σ, 8"),
        (lambda: from_diffusers(DiTTransformer2DModel(2, 8, num_layers=1, attention_bias=False)),
         "lacks 'transformer_blocks.0.attn1.to_q.bias'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("conditioning", sorted(set(BLOCKS) - {"adaln-zero"}))
def test_only_adaln_zero_has_a_counterpart(conditioning):
    with pytest.raises(ValueError, match=r"allowed: AdaLNZeroBlock"):
        to_diffusers(random_dit(conditioning=conditioning))


def test_only_diffusers_models_are_converted_back():
    with pytest.raises(TypeError, match="not DiT"):
        from_diffusers(random_dit())
