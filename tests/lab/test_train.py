"""The training loop: what it computes, and that nothing is lost when it is cut short."""

import errno
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from dit_edu.lab import checkpoint
from dit_edu.lab import train as train_module
from dit_edu.lab.checkpoint import checkpoint_path
from dit_edu.lab.files import read_safetensors, write_safetensors
from dit_edu.lab.recipes import Process, Recipe
from dit_edu.lab.train import NonFiniteLossError, run, train, update_ema

TINY = Recipe(
    name="tiny",
    model=dict(
        input_size=4,
        patch_size=2,
        in_channels=1,
        hidden_size=16,
        depth=1,
        num_heads=2,
        num_classes=3,
        class_dropout_prob=0.2,
        learn_sigma=False,
        embed_std=0.2,
    ),
    process=Process(num_timesteps=50),
    steps=8,
    batch_size=12,
    warmup=3,
    checkpoint_every=3,
    noise_bins=5,
    weight_decay=0.01,
)


def toy_data(n=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = torch.rand(n, 1, 4, 4, generator=generator) - 1 + labels.view(-1, 1, 1, 1) / 2
    return images, labels


def start(recipe=TINY, **arguments):
    return train(recipe, device="cpu", data=toy_data(), **arguments)


def finish(recipe=TINY, **arguments):
    return run(recipe, device="cpu", data=toy_data(), progress=False, **arguments)


def read(out):
    with safe_open(checkpoint_path(out), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def assert_same_bits(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A model this small is slower on two threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The final checkpoint of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("straight")
    finish(out=out)
    return read(out)


# ---------------------------------------------------------------------- what it computes


def test_the_average_has_its_closed_form():
    torch.manual_seed(0)
    model, ema = torch.nn.Linear(3, 2).double(), torch.nn.Linear(3, 2).double()
    first, d, seen = ema.weight.detach().clone(), 0.9, []
    for _ in range(6):
        torch.nn.init.normal_(model.weight)
        seen.append(model.weight.detach().clone())
        update_ema(ema, model, d)
    # θ̄_n = dⁿ θ̄_0 + (1 - d) Σ_k d^(n-1-k) θ_k
    expected = d**6 * first + (1 - d) * sum(d ** (5 - k) * w for k, w in enumerate(seen))
    torch.testing.assert_close(ema.weight, expected, rtol=1e-12, atol=1e-12)


def test_the_loop_averages_its_own_weights_and_clips_its_gradient(tmp_path):
    recipe = replace(TINY, checkpoint_every=1, grad_clip=0.05)
    average = None
    for step in start(recipe, out=tmp_path):
        stored = read(tmp_path)
        name = "blocks.0.mlp.fc1.weight"
        if average is None:
            moments = [t for key, t in stored.items() if key.startswith("optimizer/exp_avg/")]
            norm = torch.cat([m.flatten() for m in moments]).norm() / (1 - recipe.betas[0])
            assert step.grad_norm > 0.05
            assert norm.item() == pytest.approx(0.05, rel=1e-3)
            average = stored[f"ema/{name}"]  # (1) is checked below by the next steps
        else:
            d = recipe.ema_decay_at(step.step - 1)
            average = d * average + (1 - d) * stored[f"model/{name}"]
        torch.testing.assert_close(stored[f"ema/{name}"], average, rtol=1e-5, atol=1e-7)


def test_the_learning_rate_of_a_step_is_the_recipes():
    assert [step.lr for step in start()] == [TINY.lr_at(k) for k in range(TINY.steps)]


def test_one_step_is_adamw_on_the_mean_loss(tmp_path):
    """A step done again by hand, from the stored weights and what the loss was given."""
    recipe = replace(
        TINY, steps=1, warmup=0, model={**TINY.model, "class_dropout_prob": 0.0}, grad_clip=1e9
    )
    given = []

    def spy(model, diffusion, x0, t, y, noise):
        assert model.training
        given.append((x0, t, y, noise))
        return diffusion.losses(model, x0, t, y, noise=noise)

    steps = start(recipe, out=tmp_path, loss_fn=spy)
    before = read(tmp_path)
    step = next(steps)
    after = read(tmp_path)
    model = recipe.build_model()
    model.load_state_dict(checkpoint.part(before, "model/"))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay
    )
    x0, t, y, noise = given[0]
    loss = recipe.process.build().losses(model, x0, t, y, noise=noise)["loss"].mean()
    loss.backward()
    optimizer.step()
    assert step.loss == pytest.approx(loss.item(), rel=1e-6)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(after[f"model/{name}"], weight, rtol=1e-5, atol=1e-7)


def test_batches_cover_the_data_the_steps_and_are_normal():
    seen = []

    def spy(model, diffusion, x0, t, y, noise):
        seen.append((x0, t, y, noise))
        return diffusion.losses(model, x0, t, y, noise=noise)

    images, labels = toy_data()
    recipe = replace(TINY, batch_size=200, steps=20)
    list(start(recipe, loss_fn=spy))
    x0, t, y, noise = (torch.cat(parts) for parts in zip(*seen, strict=True))
    rows = [(images == image).flatten(1).all(1).nonzero().item() for image in x0[:200]]
    assert y[:200].tolist() == labels[rows].tolist()
    counts = torch.bincount(t, minlength=50).double()  # each Binomial(4000, 1/50): 80 ± 9
    assert len(counts) == 50
    assert (counts - 80).abs().max() < 5 * 9
    assert abs(noise.mean()) < 5 / noise.numel() ** 0.5
    assert noise.std().item() == pytest.approx(1, abs=0.02)


def test_the_loss_per_bin_is_that_of_its_steps():
    def spy(model, diffusion, x0, t, y, noise):
        losses = diffusion.losses(model, x0, t, y, noise=noise)
        return {"loss": losses["loss"], "mse": (t // 10 + 1).float()}  # bins of 10 of 50 steps

    *_, last = start(replace(TINY, steps=30), loss_fn=spy)
    assert last.loss_by_bin == pytest.approx([1, 2, 3, 4, 5], rel=1e-5)


def test_another_loss_trains_another_model():
    usual = finish().model

    def zero(model, diffusion, x0, t, y, noise):
        losses = diffusion.losses(model, x0, t, y, noise=noise)
        return {**losses, "loss": model(x0, t, y).square().flatten(1).mean(1)}

    other = finish(loss_fn=zero).model
    assert not torch.equal(usual.final_layer.linear.weight, other.final_layer.linear.weight)


def test_it_learns_the_data():
    history = finish(replace(TINY, steps=200, lr=3e-3, batch_size=64, warmup=10)).history
    first, last = history[0]["loss"], sum(row["loss"] for row in history[-20:]) / 20
    assert last < 0.6 * first


@pytest.mark.parametrize("schedule", ["flow", "flow-logit-normal"])
def test_a_flow_trains_in_the_same_loop(schedule):
    """Twenty steps: its times are real numbers of its law, in their bins, and the loss falls."""
    times = []

    def spy(model, flow, x0, t, y, noise):
        times.append(t)
        return flow.losses(model, x0, t, y, noise=noise)

    recipe = replace(
        TINY, process=Process(schedule=schedule), steps=20, batch_size=64, lr=1e-2, noise_bins=3
    )
    history = finish(recipe, loss_fn=spy).history
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    t = torch.cat(times)
    assert t.is_floating_point()
    assert 0 <= t.min() < t.max() <= 999
    middle = ((t >= 1000 / 3) & (t < 2000 / 3)).double().mean()  # P(|z| < ln 2) if logit-normal
    assert middle == pytest.approx(1 / 3 if schedule == "flow" else 0.512, abs=0.04)
    assert all(math.isfinite(loss) for loss in history[-1]["loss_by_bin"])


def test_a_learnt_variance_trains_in_the_same_loop():
    process = Process(num_timesteps=50, variance="learned-range", levels=3)
    recipe = replace(TINY, process=process, model={**TINY.model, "learn_sigma": True})
    history = finish(recipe).history
    assert len(history) == TINY.steps
    assert all(math.isfinite(row["loss"]) for row in history)


def test_run_returns_the_average_and_the_history(tmp_path):
    result = finish(out=tmp_path)
    assert [row["step"] for row in result.history] == list(range(1, 9))
    assert set(result.history[0]) == {"step", "loss", "lr", "grad_norm", "loss_by_bin"}
    assert not result.model.training
    assert_same_bits(result.model.state_dict(), checkpoint.part(read(tmp_path), "ema/"))


# ---------------------------------------------------------------------- the same bits


def test_the_callers_random_numbers_and_the_loops_are_apart(straight, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    steps = start(out=tmp_path)
    next(steps)
    assert torch.equal(torch.rand(3), expected)
    for _ in steps:
        torch.rand(7)
    assert_same_bits(read(tmp_path), straight)


def test_another_seed_is_another_run(straight, tmp_path):
    finish(out=tmp_path, seed=1)
    assert not torch.equal(read(tmp_path)["running"], straight["running"])


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_closed_run_resumes_to_the_same_bits(stop, straight, tmp_path):
    for step in start(out=tmp_path):
        if step.step == stop:
            break
    del step
    resumed = start(out=tmp_path, resume=True)
    assert next(resumed).step == stop + 1
    list(resumed)
    assert_same_bits(read(tmp_path), straight)


def test_an_error_of_the_caller_still_writes_the_checkpoint(straight, tmp_path):
    with pytest.raises(ZeroDivisionError):
        for step in start(out=tmp_path):
            step.step / (5 - step.step)
    finish(out=tmp_path, resume=True)
    assert_same_bits(read(tmp_path), straight)


@pytest.mark.parametrize("where", ["loss", "update", "save"])
def test_ctrl_c_resumes_to_the_same_bits(where, straight, tmp_path, monkeypatch):
    """A real SIGINT: in the forward pass, in the midst of the update, in the midst of a save."""
    calls = 0

    def strike(at):
        nonlocal calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGINT)

    def spy(model, diffusion, x0, t, y, noise):
        losses = diffusion.losses(model, x0, t, y, noise=noise)
        if where == "loss":
            strike(5)
        return losses

    if where == "update":
        original = train_module.update_ema

        def update(*arguments):
            strike(5)
            original(*arguments)

        monkeypatch.setattr(train_module, "update_ema", update)
    if where == "save":
        replace_file = os.replace

        def rename(*arguments):
            strike(2)  # (the first is that of step 0)
            replace_file(*arguments)

        monkeypatch.setattr(os, "replace", rename)
    with pytest.raises(KeyboardInterrupt):
        list(start(out=tmp_path, loss_fn=spy))
    monkeypatch.undo()
    with safe_open(checkpoint_path(tmp_path), framework="pt") as file:
        assert f'"step": {dict(loss=4, update=5, save=3)[where]}' in str(file.metadata())
    finish(out=tmp_path, resume=True)
    assert_same_bits(read(tmp_path), straight)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE_NAME]


def test_a_loss_that_changes_on_the_way_resumes_where_it_was(tmp_path):
    seen = []

    class Growing:
        step = 0

        def __call__(self, model, diffusion, x0, t, y, noise):
            seen.append(self.step)
            losses = diffusion.losses(model, x0, t, y, noise=noise)
            return {**losses, "loss": losses["loss"] ** (1 + self.step)}  # clipping undoes scale

    finish(out=tmp_path / "straight", loss_fn=Growing())
    assert seen == list(range(TINY.steps))
    steps = start(out=tmp_path / "cut", loss_fn=Growing())
    for step in steps:
        if step.step == 4:
            steps.close()
    finish(out=tmp_path / "cut", resume=True, loss_fn=Growing())
    assert_same_bits(read(tmp_path / "cut"), read(tmp_path / "straight"))


def test_ctrl_c_between_two_steps_writes_the_checkpoint(straight, tmp_path, monkeypatch):
    class Bar(train_module.tqdm):
        def update(self, n=1):
            super().update(n)
            if self.n == 5:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "tqdm", Bar)
        with pytest.raises(KeyboardInterrupt):
            run(TINY, device="cpu", data=toy_data(), out=tmp_path)
    assert next(start(out=tmp_path, resume=True)).step == 6
    finish(out=tmp_path, resume=True)
    assert_same_bits(read(tmp_path), straight)


KILL = """
import os, sys
sys.path.insert(0, {folder!r})
import test_train
done = os.replace
calls = []
def rename(source, target):
    calls.append(source)
    if len(calls) == 3:  # step 0, step 3, and now step 6
        os._exit(9)
    done(source, target)
os.replace = rename
list(test_train.start(out={out!r}))
"""


def test_a_kill_before_the_rename_leaves_the_checkpoint_before(straight, tmp_path, root):
    code = KILL.format(folder=str(Path(__file__).parent), out=str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 9
    with safe_open(checkpoint_path(tmp_path), framework="pt") as file:
        assert '"step": 3' in str(file.metadata())
    finish(out=tmp_path, resume=True)
    assert_same_bits(read(tmp_path), straight)


def test_a_finished_run_resumes_to_itself(tmp_path):
    first = finish(out=tmp_path)
    again = finish(out=tmp_path, resume=True)
    assert again.history == []
    assert_same_bits(first.model.state_dict(), again.model.state_dict())


# ---------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize("source", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_checkpoint(source, tmp_path):
    calls = 0

    def spoilt(model, diffusion, x0, t, y, noise):
        nonlocal calls
        calls += 1
        losses = diffusion.losses(model, x0, t, y, noise=noise)
        if calls == 5 and source == "loss":
            losses["loss"] = losses["loss"] * float("nan")
        if calls == 5 and source == "gradient":  # sqrt has an infinite slope at 0
            losses["loss"] = losses["loss"] + (losses["loss"] * 0).sqrt()
        return losses

    with pytest.raises(NonFiniteLossError, match="not finite at step 5; the checkpoint of step 3"):
        list(start(out=tmp_path, loss_fn=spoilt))
    assert all(torch.isfinite(tensor).all() for tensor in read(tmp_path).values())
    assert next(start(out=tmp_path, resume=True)).step == 4


def test_a_checkpoint_of_another_recipe_or_seed_is_refused(tmp_path):
    finish(out=tmp_path)
    stored = checkpoint_path(tmp_path).read_bytes()
    with pytest.raises(ValueError, match=r"another recipe: lr: 0\.5 against 0\.001"):
        start(replace(TINY, lr=0.5), out=tmp_path, resume=True)
    with pytest.raises(ValueError, match="seed: 3 against 0"):
        start(seed=3, out=tmp_path, resume=True)
    assert checkpoint_path(tmp_path).read_bytes() == stored


def test_a_run_does_not_overwrite_another(tmp_path):
    finish(out=tmp_path)
    stored = checkpoint_path(tmp_path).read_bytes()
    with pytest.raises(ValueError, match="already holds a checkpoint"):
        start(seed=1, out=tmp_path)
    assert checkpoint_path(tmp_path).read_bytes() == stored


def test_a_truncated_checkpoint_is_refused_and_kept(tmp_path):
    finish(out=tmp_path)
    path = checkpoint_path(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        start(out=tmp_path, resume=True)
    assert path.exists()


@pytest.mark.parametrize("change", ["lacks", "shape", "more", "optimizer", "kind"])
def test_a_foreign_checkpoint_is_refused(change, tmp_path):
    finish(out=tmp_path)
    path = checkpoint_path(tmp_path)
    tensors, metadata = read_safetensors(path)
    name = "model/pos_embed"
    if change == "lacks":
        del tensors[name]
    if change == "shape":
        tensors[name] = tensors[name][:, :1]
    if change == "more":
        tensors["model/other"] = torch.zeros(1)
    if change == "optimizer":
        del tensors[next(key for key in tensors if key.startswith("optimizer/exp_avg/"))]
    if change == "kind":
        metadata = {"who": "someone else"}
    write_safetensors(path, tensors, metadata)
    message = {
        "lacks": "lacks 'pos_embed'",
        "shape": r"'pos_embed' has shape \(1, 1, 16\); allowed: \(1, 4, 16\)",
        "more": "has 'other', unknown",
        "optimizer": "optimizer",
        "kind": "no training checkpoint",
    }[change]
    with pytest.raises(ValueError, match=message):
        start(out=tmp_path, resume=True)


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="resume=True needs out="):
        start(resume=True)
    with pytest.raises(FileNotFoundError, match="no file"):
        start(resume=True, out=tmp_path / "nothing")
    with pytest.raises(ValueError, match="device='gpu' is unknown"):
        train(TINY, device="gpu")
    with pytest.raises(ValueError, match="seed=-1"):
        start(seed=-1)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device='cuda' is not available"):
            train(TINY, device="cuda")


def test_an_unwritable_folder_is_found_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        start(out=tmp_path / "file")
    with pytest.raises(OSError, match="file"):
        start(out=tmp_path / "file" / "below")


def test_a_full_disk_keeps_the_checkpoint_before(straight, tmp_path, monkeypatch):
    sync, calls = os.fsync, []

    def full(number):
        calls.append(number)
        if len(calls) > 2:  # steps 0 and 3 fit, step 6 does not
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        list(start(out=tmp_path))
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    finish(out=tmp_path, resume=True)
    assert_same_bits(read(tmp_path), straight)


# ---------------------------------------------------------------------- several processes


TWO = """
import sys
sys.path.insert(0, {folder!r})
import test_train
test_train.train_in_double({out!r}, share=6)
"""


def train_in_double(out, share):
    def spy(model, diffusion, x0, t, y, noise):
        assert len(x0) == share  # of the 12 images of a batch
        return diffusion.losses(model, x0, t, y, noise=noise)

    recipe = replace(TINY, model={**TINY.model, "class_dropout_prob": 0.0})
    device = "cpu" if torch.cuda.is_available() else "auto"  # which must find the others by itself
    torch.set_default_dtype(torch.float64)
    try:
        list(train(recipe, device=device, data=toy_data(), out=out, loss_fn=spy))
    finally:
        torch.set_default_dtype(torch.float32)


def test_two_processes_train_the_model_of_one(tmp_path, root):
    train_in_double(tmp_path / "one", share=12)
    script = tmp_path / "script.py"
    script.write_text(TWO.format(folder=str(Path(__file__).parent), out=str(tmp_path / "two")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [sys.executable, *launcher, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-8, atol=1e-10)
    assert one["model/final_layer.linear.weight"].dtype == torch.float64
