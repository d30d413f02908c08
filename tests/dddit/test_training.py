"""Training a DDDiT: sorting changes nothing, stages train what they say, the loop resumes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dit_edu.dddit.auxiliary import (
    AuxiliaryDiT,
    AuxiliaryLosses,
    explained,
    explained_by_step,
)
from dit_edu.dddit.model import DDDiT
from dit_edu.dddit.router import BudgetedLosses
from dit_edu.dddit.training import (
    ModeLosses,
    is_expert,
    sort_units,
    switched_share,
    thinned,
    unit_worth,
)
from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dit import DiT
from dit_edu.lab import train as train_module
from dit_edu.lab.checkpoint import checkpoint_path
from dit_edu.lab.files import read_safetensors
from dit_edu.lab.finetune import start_from
from dit_edu.lab.recipes import Process, Recipe
from dit_edu.lab.train import run, train

SIZES = dict(
    input_size=8, patch_size=2, in_channels=1, hidden_size=32, depth=2, num_heads=4, num_classes=3,
    learn_sigma=False,
)  # fmt: skip
TINY = Recipe(
    name="tiny",
    kind="DDDiT",
    model={**SIZES, "hidden_size": 16, "depth": 1},
    process=Process(num_timesteps=50),
    steps=6,
    batch_size=6,
    warmup=2,
    budget=0.6,
)


def dense(**options) -> DiT:
    torch.manual_seed(0)
    net = DiT(**{**SIZES, **options}).double().eval()
    for parameter in net.parameters():
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    return net


def inputs(n: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.linspace(0, 49, n).long(), torch.arange(n) % 3


def toy_data(n: int = 12):
    g = torch.Generator().manual_seed(0)
    return torch.rand(n, 1, 8, 8, generator=g) - 0.5, torch.arange(n) % 3


def finish(recipe=TINY, **arguments):
    return run(recipe, device="cpu", data=toy_data(), progress=False, **arguments).model


# ---------------------------------------------------------------------- units of a dense model


@pytest.mark.parametrize("options", [{}, {"positions": "rope"}], ids=["plain", "rotary"])
def test_sorting_changes_no_answer(options):
    net, given = dense(**options), inputs()
    want, before = net(*given), net.blocks[0].mlp.fc1.weight.clone()
    sort_units(net, unit_worth(net, *given))
    assert not torch.equal(before, net.blocks[0].mlp.fc1.weight)
    torch.testing.assert_close(net(*given), want, rtol=1e-10, atol=1e-10)
    for heads, channels in unit_worth(net, *given):
        assert (heads.diff() <= 1e-9).all() and (channels.diff() <= 1e-9).all()


def test_worth_is_what_a_unit_adds():
    net, given = dense(depth=1), inputs()
    heads, channels = unit_worth(net, *given)[0]
    block, said = net.blocks[0], {}
    hooks = [
        part.register_forward_hook(lambda m, args, out, key=key: said.__setitem__(key, out))
        for key, part in (("heads", block.attn), ("channels", block.mlp))
    ]
    net(*given)
    whole = dict(said)
    block.attn.proj.weight.data.unflatten(1, (4, -1))[:, 2] = 0
    net(*given)
    moved = (whole["heads"] - said["heads"]).square().mean().sqrt()
    torch.testing.assert_close(moved, heads[2])
    for hook in hooks:
        hook.remove()
    column = block.mlp.fc2.weight[:, 5]
    act = block.mlp.act(block.mlp.fc1.weight.new_tensor(0.0))
    assert channels.shape == (128,) and act == 0 and column.shape == (32,)
    assert channels[5] > 0


def test_thinned_is_the_first_channels():
    net, given = dense(), inputs()
    thin = thinned(net, 48)
    assert thin.blocks[0].mlp.fc1.out_features == 48
    assert net.blocks[0].mlp.fc1.out_features == 128
    for block in net.blocks:
        block.mlp.fc2.weight.data[:, 48:] = 0
    torch.testing.assert_close(thin(*given), net(*given), rtol=1e-10, atol=1e-10)


def test_a_fresh_router_on_trained_weights():
    net, given = dense(), inputs()
    routed = DDDiT(**SIZES).double().eval()
    start_from(routed, net)
    torch.testing.assert_close(routed(*given), net(*given), rtol=1e-10, atol=1e-10)
    routed.router.mlp[-1].bias.data.normal_()
    other = DDDiT(**SIZES).double()
    start_from(other, routed)  # the next stage: the router comes along
    assert all(torch.equal(v, routed.state_dict()[k]) for k, v in other.state_dict().items())


def test_switched_share_is_the_share_of_a_pass():
    net = DDDiT(**SIZES)
    target = switched_share(net, 0.7)
    everything = torch.ones(2 * net.units, dtype=torch.bool)
    full, switched = int(net.macs(everything)), 2 * int(net.unit_macs().sum())
    assert (full - switched + target * switched) / full == pytest.approx(0.7)
    with pytest.raises(ValueError, match=r"share=0\.1; allowed: 0\."):
        switched_share(net, 0.1)


# ---------------------------------------------------------------------- stages and modes


def test_the_first_stage_trains_the_experts_alone():
    before = finish(replace(TINY, steps=1, warmup=0))
    for parameter in before.parameters():
        parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
    after = finish(start=before, trainable=is_expert)
    for name, weight in after.state_dict().items():
        same = torch.equal(weight, before.state_dict()[name])
        assert same != is_expert(name), name


def test_from_scratch_the_first_stage_trains_nothing():
    """adaLN-Zero starts with gates of 0, and they are frozen: no gradient reaches an expert."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = TINY.build_model()
    after = finish(trainable=is_expert)
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in after.state_dict().items())


def test_a_stage_resumes_to_the_same_bits(tmp_path):
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    before = finish(replace(TINY, steps=2))
    finish(out=straight, start=before, trainable=is_expert)
    steps = train(TINY, device="cpu", data=toy_data(), out=cut, start=before, trainable=is_expert)
    for step in steps:
        if step.step == 3:
            steps.close()
    finish(out=cut, resume=True, trainable=is_expert)
    left, right = (read_safetensors(checkpoint_path(p))[0] for p in (straight, cut))
    assert left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
    assert not any("attn" in k for k in left if k.startswith("optimizer/"))


def test_nothing_to_train():
    with pytest.raises(ValueError, match="names no parameter"):
        finish(trainable=lambda name: False)


def test_modes_take_turns():
    net = DDDiT(**SIZES).train()
    seen = []

    class Spy(BudgetedLosses):
        def __call__(self, model, *given):
            seen.append((self.step, model.mode))
            return super().__call__(model, *given)

    losses, process = ModeLosses(Spy(0.5)), GaussianDiffusion.cosine(50)
    x, t, y = inputs()
    ran = {}
    net.register_forward_pre_hook(lambda m, args: ran.__setitem__(losses.step, m.mode))
    for k in range(5):
        losses.step = k
        losses(net, process, x.float(), t, y, torch.randn_like(x).float())
        assert net.mode == "dynamic"
    assert list(ran.values()) == ["dynamic", "light", "dynamic", "full", "dynamic"]
    assert seen == [(0, "dynamic"), (2, "dynamic"), (4, "dynamic")]


def test_light_mode_trains_what_runs():
    net = DDDiT(**SIZES).train()
    for p in net.parameters():
        p.data = p.data + 0.1 * torch.randn_like(p)
    net.mode = "light"
    x, t, y = inputs()
    net(x.float(), t, y).square().sum().backward()
    grad = net.blocks[0].mlp.fc1.weight.grad.unflatten(0, (8, -1)).abs().sum((1, 2))
    assert (grad[:2] > 0).all() and not grad[2:].any()


def test_a_recipe_names_its_start_and_its_budget(monkeypatch):
    trained, asked = finish(replace(TINY, kind="DiT", budget=None)), []
    monkeypatch.setattr(train_module, "load", lambda name: (asked.append(name) or trained, {}))
    model = finish(replace(TINY, start="somebody", steps=1, lr=1e-12, warmup=0))
    assert asked == ["somebody"]
    torch.testing.assert_close(model.blocks[0].attn.qkv.weight, trained.blocks[0].attn.qkv.weight)
    losses = train_module._loss_of(TINY, model)
    assert isinstance(losses, ModeLosses)
    assert losses.dynamic.target == switched_share(model, 0.6)
    assert Recipe.from_dict(TINY.as_dict()) == TINY
    with pytest.raises(ValueError, match=r"budget=1\.5"):
        replace(TINY, budget=1.5)
    with pytest.raises(ValueError, match=r"budget=0\.6 with kind='DiT'"):
        replace(TINY, kind="DiT")


# ---------------------------------------------------------------------- auxiliary tasks


@pytest.mark.parametrize("seen", ["step", "tokens"])
def test_listening_changes_no_answer(seen):
    net, given = dense(), inputs()
    heard = AuxiliaryDiT(seen=seen, **SIZES).double().eval()
    heard.load_state_dict(net.state_dict(), strict=False)
    torch.testing.assert_close(heard(*given), net(*given), rtol=1e-10, atol=1e-10)
    x, t, y = given
    said = heard.said
    heard(x.flip(0), t, y)
    assert torch.equal(said, heard.said) == (seen == "step")


def test_auxiliary_losses_add_squared_errors():
    torch.manual_seed(0)
    net, process = AuxiliaryDiT(**SIZES), GaussianDiffusion.cosine(50)
    losses = AuxiliaryLosses(lambda x: x.mean((1, 2, 3)), ((0.5, 2.0), (-1.0, 0.5)), weight=0.1)
    x, t, y = inputs()
    x = x.float()
    found = losses(net.eval(), process, x, t, y, torch.zeros_like(x))
    z = (x.mean((1, 2, 3)) - 0.5) / 2
    d = (found["mse"].log() + 1) / 0.5
    wrong = ((net.said[:, 0] - z) ** 2 + (net.said[:, 1] - d) ** 2) / 2
    torch.testing.assert_close(found["loss"], found["mse"] + 0.1 * wrong)


def test_what_a_step_can_explain():
    t = torch.arange(4000) % 1000
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(4000, generator=g)
    assert explained_by_step(t.float(), t) > 0.99
    assert abs(float(explained_by_step(noise, t))) < 0.02
    both = (t / 1000 - 0.5) * 12**0.5 + noise  # two halves of equal variance
    assert float(explained_by_step(both, t)) == pytest.approx(0.5, abs=0.04)
    assert float(explained(noise, noise)) == 1.0


def test_bad_input_of_auxiliary_tasks():
    with pytest.raises(ValueError, match="seen='x'"):
        AuxiliaryDiT(seen="x", **SIZES)
    with pytest.raises(ValueError, match="weight=-1"):
        AuxiliaryLosses(lambda x: x, ((0, 1), (0, 1)), weight=-1)
