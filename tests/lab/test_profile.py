"""Costs against counts by hand, the paper's figure, and torch's own profiler."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dit_edu.dit import DiT
from dit_edu.lab.profile import Cost, count, count_training, race
from dit_edu.lab.recipes import Recipe


class Call(nn.Module):
    """Any function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


B, H, N, M, D, E = 2, 3, 16, 12, 8, 5


def by_hand():
    q, k, v = torch.randn(B, H, N, D), torch.randn(B, H, M, D), torch.randn(B, H, M, D)
    mask = torch.ones(N, M, dtype=torch.bool)
    attention = B * H * N * M * (D + D)
    x = torch.randn(B, N, D)
    mha = nn.MultiheadAttention(D, 2, batch_first=True)
    return {
        "linear": (nn.Linear(D, E), (x,), B * N * D * E),
        "conv": (nn.Conv2d(3, E, 3, stride=2), (torch.randn(B, 3, 9, 9),), B * 16 * E * 3 * 9),
        "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (torch.randn(B, 4, 6, 6),), B * 16 * 4 * 9),
        "matmul": (Call(torch.matmul), (x, torch.randn(B, D, E)), B * N * D * E),
        "einsum": (Call(lambda a: torch.einsum("bnd,bmd->bnm", a, a)), (x,), B * N * N * D),
        "attention": (Call(F.scaled_dot_product_attention), (q, k, v), attention),
        "masked": (Call(F.scaled_dot_product_attention), (q, k, v, mask), attention),
        "naive": (Call(lambda q, k, v: (q @ k.mT).softmax(-1) @ v), (q, k, v), attention),
        # Four projections of D x D and, over all heads together, 2 N N D.
        "fused module": (mha, (x, x, x), B * (4 * N * D * D + 2 * N * N * D)),
        "elementwise": (nn.Sequential(nn.LayerNorm(D), nn.GELU(), nn.Softmax(-1)), (x,), 0),
    }


@pytest.mark.parametrize("name", by_hand())
def test_macs_are_those_counted_by_hand(name):
    model, inputs, macs = by_hand()[name]
    cost = count(model, *inputs, repeats=0)
    assert cost.macs == macs and cost.flops == 2 * macs
    assert cost.params == sum(p.numel() for p in model.parameters())
    assert cost.seconds is None and cost.peak_memory is None
    on_meta = count(model.to("meta"), *(x.to("meta") for x in inputs))
    assert on_meta == cost


def test_the_papers_largest_model_on_the_meta_device():
    """Peebles & Xie 2023, Table 4: DiT-XL/2 at 256 px has 675 M parameters and 118.64 Gflops."""
    with torch.device("meta"):
        model = DiT.from_preset("DiT-XL/2")
        y = torch.zeros(1, dtype=torch.long)
        cost = count(model, torch.empty(1, 4, 32, 32), y, y)
    assert cost.params / 1e6 == pytest.approx(675, abs=0.5)
    assert cost.macs / 1e9 == pytest.approx(118.64, abs=0.05)


def test_only_what_runs_is_counted_and_modes_come_back():
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cheap, self.dear = nn.Linear(8, 8), nn.Linear(8, 800)

        def forward(self, x):
            assert not torch.is_grad_enabled()
            return self.dear(x) if self.training else self.cheap(x)

    model = Routed()
    model.cheap.eval()
    cost = count(model, torch.randn(4, 8), repeats=1)
    assert cost.macs == 4 * 64 and cost.params == 72 + 7200
    assert model.training and model.dear.training and not model.cheap.training
    assert torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ZeroDivisionError):
        count(Call(lambda x: 1 / 0), torch.randn(1))
    assert torch.backends.mha.get_fastpath_enabled()


def test_seconds_are_a_median_after_warming_up():
    calls = []

    def slow(x):
        calls.append(None)
        time.sleep(
            0.2 if len(calls) < 4 or len(calls) == 6 else 0.01
        )  # counting, warm-up, one hiccup
        return x

    cost = count(Call(slow), torch.randn(1), repeats=3)
    assert 0.01 <= cost.seconds < 0.1


def test_peak_memory_by_hand():
    x, w = torch.randn(512, 256), torch.randn(256, 1024)
    one = 512 * 1024 * 4  # bytes of x @ w
    assert count(Call(lambda x: x @ w), x).peak_memory == one
    assert count(Call(lambda x: F.gelu(x @ w)), x).peak_memory == 2 * one
    assert count(Call(lambda x: (x @ w).relu_().view(-1)), x).peak_memory == one
    assert count(Call(lambda x: x.T[:3].view(3, 512)), x).peak_memory == 0  # views hold nothing

    def one_by_one(x):
        for _ in range(5):
            y = x @ w  # the last one lives until the next is made
        return y

    assert count(Call(one_by_one), x).peak_memory == 2 * one


def test_peak_memory_agrees_with_torchs_allocator():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.LayerNorm(64))
    x = torch.randn(8, 256, 64)
    with torch.profiler.profile(profile_memory=True) as trace, torch.no_grad():
        block(x)
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    assert count(block, x).peak_memory == pytest.approx(peak, rel=0.02)


def test_fused_attention_holds_no_square():
    q = torch.randn(1, 2, 1024, 16)
    square = 2 * 1024 * 1024 * 4
    naive = count(Call(lambda q: (q @ q.mT).softmax(-1) @ q), q)
    fused = count(Call(lambda q: F.scaled_dot_product_attention(q, q, q)), q)
    assert naive.peak_memory >= 2 * square > 10 * fused.peak_memory
    assert naive.macs == fused.macs


def test_bad_repeats():
    with pytest.raises(ValueError, match="repeats=-1"):
        count(nn.Identity(), torch.randn(1), repeats=-1)
    assert count(nn.Identity(), torch.randn(1), repeats=0) == Cost(0, 0)


def small(**changes) -> Recipe:
    model = dict(input_size=8, patch_size=2, in_channels=1, hidden_size=32, depth=3, num_heads=4)
    model |= dict(num_classes=10, learn_sigma=False)
    return Recipe(name="small", model=model, **{"batch_size": 16, **changes})


def test_macs_of_an_update_are_three_forward_passes_and_a_little():
    """A linear map costs as much again for each of its two gradients; not all have both."""
    b, n, d, depth = 16, 16, 32, 3
    cost = count_training(small(), updates=1)
    x, y = torch.zeros(b, 1, 8, 8), torch.zeros(b, dtype=torch.long)
    forward = count(small().build_model(), x, y, y, repeats=0).macs
    without_input_gradient = b * (n * 4 * d + 256 * d)  # patches, and the waves of t
    scores_again = b * depth * n * n * d  # fused attention keeps no table: it is made anew
    assert cost.macs == 3 * forward - without_input_gradient + scores_again


def test_memory_of_training_is_state_and_activations():
    costs = {b: count_training(small(batch_size=b), updates=1) for b in (1, 16, 32)}
    weights = 4 * costs[1].params  # bytes; weights, average and Adam's two moments stay
    assert costs[1].params == sum(w.numel() for w in small().build_model().parameters()) - 16 * 32
    assert 4 * weights < costs[1].state < 4.2 * weights
    assert weights < costs[1].transient < 1.1 * weights  # one image: the gradients
    each = (costs[32].transient - costs[16].transient) / 16
    assert costs[32].transient == pytest.approx(32 * each, rel=0.02)  # activations, then


def test_speed_of_training():
    cost = count_training(small(), updates=3)
    assert 0 < cost.seconds < 10
    assert cost.images_per_second == pytest.approx(16 / cost.seconds)
    with pytest.raises(ValueError, match="updates=0"):
        count_training(small(), updates=0)


def test_a_race_runs_in_turns_and_keeps_the_least(monkeypatch):
    now, calls = [0.0], []
    took = {"a": iter([9.0, 3.0, 2.0, 4.0]), "b": iter([1.0, 7.0, 6.0, 5.0])}  # the first warms up
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def way(name):
        calls.append(name)
        now[0] += next(took[name])

    assert race({name: lambda name=name: way(name) for name in took}, turns=3) == {"a": 2, "b": 5}
    assert calls == ["a", "b"] * 4
    with pytest.raises(ValueError, match="turns=0"):
        race({}, turns=0)
