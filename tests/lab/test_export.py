"""A model on its way into a page: what is written, what is read back, what is refused.

That the page computes with it what torch computes is in tests/browser/test_model.py.
"""

import re

import numpy as np
import pytest
import torch

from dit_edu.diffusion import cosine_betas
from dit_edu.dit import DiT
from dit_edu.lab import zoo
from dit_edu.lab.cli import main
from dit_edu.lab.export import DTYPES, SMALL, export, read_export
from dit_edu.lab.recipes import RECIPES


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip(dtype, tmp_path):
    content, tensors = read_export(export("digits-dit", tmp_path / "digits-dit.js", dtype))
    model, card = zoo.load("digits-dit")
    for name, weight in model.state_dict().items():
        rounded = weight.to(getattr(torch, dtype if weight.numel() >= SMALL else "float32"))
        assert torch.equal(tensors.pop(name), rounded), name
    assert content["sha256"] == card["sha256"]
    assert content["sampling"] == card["sampling"]
    # what is left is no weight: ᾱ, exact, and the waves of the step
    alpha_bar = np.cumprod(1 - cosine_betas(1000).numpy())
    np.testing.assert_allclose(tensors.pop("alphas_cumprod"), alpha_bar, rtol=1e-12)
    omega = 10000.0 ** (-np.arange(128) / 128)
    np.testing.assert_allclose(tensors.pop("omega"), omega, rtol=1e-6)
    assert not tensors


def test_the_model_can_be_built_again(tmp_path):
    content, tensors = read_export(export("digits-dit", tmp_path / "x.js", "float32"))
    config = content["config"]
    again = DiT(**{**config, "input_size": tuple(config["input_size"]), "learn_sigma": False})
    again.load_state_dict({k: v for k, v in tensors.items() if k in again.state_dict()})
    model, _ = zoo.load("digits-dit")
    x, t, y = torch.randn(3, 1, 8, 8), torch.tensor([0, 500, 999]), torch.tensor([1, 5, 10])
    with torch.no_grad():
        assert torch.equal(again.eval()(x, t, y), model(x, t, y))


def test_the_command_writes_what_the_function_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "digits-dit"]) == 0
    assert re.search(r"wrote digits-dit\.js, \d+ kB", capsys.readouterr().out)
    expected = export("digits-dit", tmp_path / "other.js").read_bytes()
    assert (tmp_path / "digits-dit.js").read_bytes() == expected


def test_what_the_page_ships_is_the_zoo_s(tmp_path):
    """`make figures` has run since the model was trained."""
    shipped = zoo.ZOO.parents[1] / "book" / "_static" / "models" / "digits-dit.js"
    assert shipped.read_bytes() == export("digits-dit", tmp_path / "now.js").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits-dti"], "digits-dti.*Did you mean 'digits-dit'"),
        (["digits-dit", "--dtype", "float61"], "dtype='float61'.*Did you mean 'float16'"),
        (["digits-dit", "--out", "model.json"], r"model\.json.*allowed: \.js"),
        (["digits-features"], "digits-features is a .*allowed: a DiT"),
    ],
)
def test_bad_input_is_one_line(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(words, error)
    assert not list(tmp_path.iterdir())


def put(name, monkeypatch, folder, change=lambda model: None, **config):
    """A small model of one's own in a zoo of one's own."""
    monkeypatch.setattr(zoo, "ZOO", folder)
    recipe = RECIPES["digits-dit"]
    config = {**recipe.model, "hidden_size": 16, "depth": 1, "num_heads": 2, **config}
    model = DiT(**config)
    change(model)
    card = {"kind": "DiT", "config": config, "recipe": recipe.as_dict(), "sampling": {}}
    zoo.save(name, model, card)


def test_learnt_variance_is_refused(tmp_path, monkeypatch):
    put("sigma", monkeypatch, tmp_path, learn_sigma=True)
    with pytest.raises(ValueError, match="sigma learns its variance; allowed: learn_sigma=False"):
        export("sigma", tmp_path / "sigma.js")


def test_a_weight_beyond_half_precision_is_named(tmp_path, monkeypatch):
    def blow_up(model):
        model.t_embedder.mlp[0].weight.data[0, 0] = 1e5

    put("loud", monkeypatch, tmp_path, blow_up)
    with pytest.raises(ValueError, match=r"t_embedder\.mlp\.0\.weight .*float16 .*float32"):
        export("loud", tmp_path / "loud.js")
    export("loud", tmp_path / "loud.js", "float32")


@pytest.mark.parametrize("keep", [0, 10, 1000, -1])
def test_a_truncated_file_is_no_model(keep, tmp_path):
    path = export("digits-dit", tmp_path / "x.js")
    path.write_text(path.read_text("utf8")[:keep], "utf8")
    with pytest.raises(ValueError, match="no exported model, or it is truncated"):
        read_export(path)
