"""Early exit: against shorter models, one image at a time, and counted MACs."""

from __future__ import annotations

import pytest
import torch

from dit_edu.dddit.exits import ExitDiT, answers, exit_losses
from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dit import DiT
from dit_edu.lab.profile import count
from dit_edu.routing import record_routing

MODEL = dict(
    input_size=8, patch_size=2, in_channels=1, hidden_size=32, depth=5, num_heads=4, num_classes=10,
    learn_sigma=False,
)  # fmt: skip


def model(dtype=torch.float64, **options) -> ExitDiT:
    torch.manual_seed(0)
    net = ExitDiT(**{**MODEL, **options}).to(dtype).eval()
    for parameter in net.parameters():
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    return net


def inputs(n: int = 8, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return x, torch.linspace(0, 999, n).long(), torch.arange(n) % 11


def same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def median_threshold(net: ExitDiT, batch) -> float:
    """At which some images leave early, and some do not; a little off, so that none is on it."""
    said = torch.stack(answers(net, *batch)).detach()  # (L - floor + 1, B, C, H, W)
    return 1.001 * float(said.diff(dim=0).square().mean((2, 3, 4)).median())


def short_answers(net: ExitDiT, x, t, y) -> torch.Tensor:
    """By definition: a DiT of k blocks with the same weights, for each k."""
    said = []
    for k in range(net.floor, 6):
        short = DiT(**{**MODEL, "depth": k}).double().eval()
        own = short.state_dict()
        short.load_state_dict({name: net.state_dict()[name] for name in own})
        said.append(short(x, t, y))
    return torch.stack(said)  # (L - floor + 1, B, C, H, W)


@pytest.mark.parametrize("floor", [1, 3])
def test_answers_are_those_of_shorter_models(floor):
    net, batch = model(floor=floor), inputs()
    same(torch.stack(answers(net, *batch)), short_answers(net, *batch))


@pytest.mark.parametrize("floor", [1, 2])
def test_images_leave_where_their_answer_hardly_moved(floor):
    net, batch = model(floor=floor), inputs()
    net.threshold = median_threshold(net, batch)
    with record_routing(net) as trace:
        out = net(*batch)
    (decision,) = trace.decisions
    said = short_answers(net, *batch)
    moved = said.diff(dim=0).square().mean((2, 3, 4))  # (L - floor, B)
    depths = []
    for i in range(len(out)):
        depth = floor + 1
        while depth < 5 and moved[depth - floor - 1, i] >= net.threshold:
            depth += 1
        same(out[i], said[depth - floor, i])
        depths.append(depth)
    assert decision.chosen.sum(1).tolist() == depths
    assert len(set(depths)) > 1


def test_a_sample_does_not_depend_on_its_mates():
    net, (x, t, y) = model(), inputs()
    net.threshold = median_threshold(net, (x, t, y))
    together = net(x, t, y)
    for i in range(len(x)):
        one = slice(i, i + 1)
        same(together[one], net(x[one], t[one], y[one]))


def test_macs_are_those_that_ran():
    net, batch = model(torch.float32), inputs(dtype=torch.float32)
    net.threshold = median_threshold(net, batch)
    with record_routing(net) as trace:
        net(*batch)
    (decision,) = trace.decisions
    rest = count(DiT(**MODEL), *batch, repeats=0).macs - 8 * 5 * net.block_macs()[0]
    assert decision.executed().sum() + rest == count(net, *batch, repeats=0).macs


def test_everybody_or_nobody_leaves():
    net, batch = model(), inputs()
    net.threshold = 0.0
    same(net(*batch), answers(net, *batch)[-1])
    net.threshold = float("inf")
    ran = []
    for block in net.blocks:
        block.register_forward_hook(lambda *_: ran.append(1))
    out = net(*batch)
    assert len(ran) == 2
    same(out, short_answers(net, *batch)[1])


def test_the_loss_is_the_mean_over_the_answers():
    net, (x, t, y) = model(), inputs()
    process = GaussianDiffusion.cosine(1000, prediction="v")
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    found = exit_losses(net, process, x, t, y, noise)
    x_t = process.q_sample(x, t, noise)
    target = process.target(x, noise, t)
    each = (short_answers(net, x_t, t, y) - target).square().mean((2, 3, 4))  # (L, B)
    same(found["loss"], each.mean(0))
    same(found["mse"], each[-1])
    assert not any(block._forward_hooks for block in net.blocks)


def test_budgets_are_depths():
    net, batch = model(), inputs()
    net.threshold = float("inf")
    for k, said in enumerate(short_answers(net, *batch)):
        net.depth_budget = k / 4
        same(net(*batch), said)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(threshold=-1.0), "threshold=-1.0"),
        (dict(order=[1, 0, 2, 3, 4]), "order="),
        (dict(conditioning="in-context"), "adaln-zero"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        ExitDiT(**MODEL, **options)
