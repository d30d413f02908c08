"""Adapters and fine-tuning: a start that changes nothing, weights that merge, classes that stay."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from dit_edu.dit import DiT
from dit_edu.lab.files import tensors_sha256
from dit_edu.lab.finetune import load_adapters, save_adapters, start_from
from dit_edu.lab.lora import TABLE, TARGETS, LoRADiT
from dit_edu.lab.recipes import Process, Recipe
from dit_edu.lab.train import run, train

CONFIG = dict(
    input_size=8,
    patch_size=2,
    in_channels=2,
    hidden_size=16,
    depth=2,
    num_heads=2,
    num_classes=3,
    class_dropout_prob=0.2,
    learn_sigma=False,
)
MORE = {**CONFIG, "num_classes": 5}


def randomized(model, std=0.2, seed=0):
    """All weights random, so that nothing is hidden behind a zero."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=g) * std)
    return model.eval()


@pytest.fixture(scope="module")
def base():
    return randomized(DiT(**CONFIG))


def adapted(base, rank=2, settings=MORE):
    model = LoRADiT(rank=rank, **settings)
    start_from(model, base)
    return model.eval()


def batch(n=6, classes=3):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 2, 8, 8, generator=g)
    return x, torch.arange(n) * 90, torch.arange(n) % classes


@torch.no_grad()
def test_it_starts_as_what_it_is_made_from(base):
    x, t, y = batch()
    for model in (adapted(base), DiT(**MORE).eval(), DiT(**CONFIG).eval()):
        start_from(model, base)
        torch.testing.assert_close(model(x, t, y), base(x, t, y), rtol=0, atol=0)
        null = model(x, t, model.null_condition(y))
        torch.testing.assert_close(null, base(x, t, base.null_condition(y)), rtol=0, atol=0)
    new = adapted(base)(x, t, torch.full_like(y, 4))  # a new class begins as the null class
    torch.testing.assert_close(new, base(x, t, base.null_condition(y)), rtol=0, atol=0)


@torch.no_grad()
def test_without_a_null_class_a_new_one_begins_as_the_mean():
    plain = {"class_dropout_prob": 0.0}
    old, new = randomized(DiT(**{**CONFIG, **plain})), DiT(**{**MORE, **plain})
    start_from(new, old)
    rows, known = new.state_dict()[TABLE], old.state_dict()[TABLE]
    torch.testing.assert_close(rows, torch.cat([known, known.mean(0).expand(2, -1)]))


@torch.no_grad()
@pytest.mark.parametrize("rank", [1, 4])
def test_merged_weights_are_the_same_function(base, rank):
    model = randomized(adapted(base, rank), std=0.3)
    x, t, y = batch(classes=5)
    plain = model.merged()
    assert type(plain) is DiT
    assert sum(p.numel() for p in plain.parameters()) == sum(
        p.numel() for p in DiT(**MORE).parameters()
    )
    torch.testing.assert_close(plain(x, t, y), model(x, t, y), rtol=1e-5, atol=1e-5)
    x, model = x.double(), model.double()
    torch.testing.assert_close(model.merged()(x, t, y), model(x, t, y), rtol=1e-10, atol=1e-10)


def test_a_layer_is_its_formula_by_hand(base):
    """W + B A, from the stored tensors alone; peft is not asked."""
    model = randomized(adapted(base, rank=3))
    weights, merged = model.state_dict(), model.merged().state_dict()
    name = "blocks.1.mlp.fc2"
    a, b = (weights[f"{name}.lora_{k}.default.weight"] for k in "AB")
    assert (a.shape, b.shape) == ((3, 64), (16, 3))
    by_hand = weights[f"{name}.base_layer.weight"] + b @ a
    torch.testing.assert_close(merged[f"{name}.weight"], by_hand)
    assert torch.linalg.matrix_rank(b @ a) == 3


def test_only_adapters_and_labels_learn(base):
    model, r = adapted(base), 2
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == set(model.adapters())
    d, k = CONFIG["hidden_size"], MORE["num_classes"] + 1
    widths = {"attn.qkv": (d, 3 * d), "attn.proj": (d, d)}
    widths |= {"mlp.fc1": (d, 4 * d), "mlp.fc2": (4 * d, d)}
    assert set(widths) == set(TARGETS)
    in_blocks = CONFIG["depth"] * sum(r * (i + o) for i, o in widths.values())
    assert sum(w.numel() for w in model.adapters().values()) == in_blocks + k * d


RECIPE = Recipe(
    name="tiny",
    kind="LoRADiT",
    model={**MORE, "rank": 2},
    process=Process(num_timesteps=50),
    steps=6,
    batch_size=8,
    warmup=0,
    checkpoint_every=2,
)


def own(n=12):
    g = torch.Generator().manual_seed(0)
    return torch.rand(n, 2, 8, 8, generator=g) * 2 - 1, 3 + torch.arange(n) % 2


def test_training_leaves_what_is_frozen_and_the_old_classes(base):
    model = run(RECIPE, data=own(), start=base, device="cpu", progress=False).model
    before, after = adapted(base).state_dict(), model.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    b = {name for name in after if ".lora_B" in name}
    assert b <= changed <= set(model.adapters())
    torch.testing.assert_close(after[TABLE][:3], before[TABLE][:3], rtol=0, atol=0)
    assert all(not torch.equal(after[TABLE][row], before[TABLE][row]) for row in (3, 4, 5))


def test_nothing_is_said():
    """diffusers and peft load a library that complains about kernels of other machines."""
    code = "from dit_edu.lab.lora import LoRADiT; from dit_edu.lab import published; "
    code += f"LoRADiT(rank=1, **{CONFIG})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_an_interrupted_run_ends_with_the_same_bits(base, tmp_path):
    straight = run(RECIPE, data=own(), start=base, device="cpu", progress=False).model
    for step in train(RECIPE, data=own(), start=base, device="cpu", out=tmp_path):
        if step.step == 3:
            break
    resumed = run(RECIPE, data=own(), device="cpu", out=tmp_path, resume=True, progress=False).model
    for name, weight in straight.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_adapters_go_to_a_file_and_back(base, tmp_path):
    model, path = randomized(adapted(base)), tmp_path / "adapters.safetensors"
    save_adapters(path, model, base)
    stored = load_file(path)  # any reader of safetensors can open it
    assert set(stored) == set(model.adapters())
    again, (x, t, y) = load_adapters(path, base), batch(classes=5)
    assert not again.training
    torch.testing.assert_close(again(x, t, y), model(x, t, y), rtol=0, atol=0)
    other = randomized(DiT(**CONFIG), seed=1)
    with pytest.raises(ValueError, match="belongs to another model"):
        load_adapters(path, other)
    with pytest.raises(FileNotFoundError):
        load_adapters(tmp_path / "none.safetensors", base)
    from dit_edu.lab.files import write_safetensors

    write_safetensors(path, model.adapters())
    with pytest.raises(ValueError, match="holds no adapters"):
        load_adapters(path, base)


@torch.no_grad()
def test_one_may_go_on_from_adapters(base):
    """Adapters of adapters: the first are merged into what the second stand on."""
    first = randomized(adapted(base))
    second = adapted(first)
    x, t, y = batch(classes=5)
    torch.testing.assert_close(second(x, t, y), first(x, t, y), rtol=1e-5, atol=1e-5)


def test_bad_input_is_named(base):
    for rank, error in ((0, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="rank="):
            LoRADiT(rank=rank, **CONFIG)
    with pytest.raises(ValueError, match="num_classes=2; allowed: at least start's 3"):
        start_from(DiT(**{**CONFIG, "num_classes": 2}), base)
    with pytest.raises(ValueError, match=r"start does not fit the model: .*x_embedder"):
        start_from(DiT(**{**CONFIG, "in_channels": 3}), base)
    with pytest.raises(ValueError, match=r"start does not fit the model: it has 'blocks\.1"):
        start_from(DiT(**{**CONFIG, "depth": 1}), base)
    with pytest.raises(ValueError, match="start is a Linear; allowed: a DiT"):
        start_from(DiT(**CONFIG), torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="kind='LoRADiT' needs start="):
        train(RECIPE, data=own(), device="cpu")
    with pytest.raises(ValueError, match="num_classes=3"):
        train(
            replace(RECIPE, kind="DiT", model={**CONFIG, "num_classes": 3}),
            data=own(),
            start=randomized(DiT(**MORE)),
            device="cpu",
        )


def test_the_hash_sees_names_shapes_types_and_numbers():
    a = torch.arange(6.0)
    same = {"x": a, "y": a.view(2, 3)}
    assert tensors_sha256(same) == tensors_sha256(dict(reversed(same.items())))
    others = [{"x": a + 1e-6}, {"z": a}, {"x": a.view(2, 3)}, {"x": a.double()}, {}]
    found = {tensors_sha256({**same, **other}) if other else "" for other in others}
    found |= {tensors_sha256({"x": a.bool()}), tensors_sha256({"x": a.sum()}), tensors_sha256(same)}
    assert len(found) == len(others) + 3
