"""DiT against diffusers' DiT, in one run: ``make bench`` writes ``results/bench.json``.

Both have the same weights, and what they answer is compared before anything is timed. Then they
take turns. A round is one call of each, in an order that changes from round to round; the ratio of
a round is that of two calls that lie next to each other, so whatever else the machine does at the
time is in both. What counts is the median of these ratios; its quartiles say how noisy it was. On
the CPU there is one thread, and the clock is the processor's time: waiting for others is not in it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.utils.benchmark import timer  # waits for the GPU to be done

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dit import PRESETS, DiT
from dit_edu.lab.convert import to_diffusers
from dit_edu.lab.devices import device_name
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import RESULTS
from dit_edu.lab.files import provenance, write_json
from dit_edu.sampling import ddim_sample

PRESET = "DiT-S/2"
ROUNDS = {"forward": 40, "training step": 20, "sampling": 4}
WARM_UP = 1
DIFFUSION = GaussianDiffusion.linear(1000, variance="learned-range")
Call = Callable[[], Any]


class AsDenoiser(nn.Module):
    """diffusers' model with the signature of ours."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """``x`` (B, C, H, W), ``t`` and ``y`` (B,) → (B, 2C, H, W)."""
        return self.model(x, t, y, return_dict=False)[0]


def contestants(settings: dict[str, Any], device: str) -> dict[str, nn.Module]:
    """Two models with the same random weights: without them the answer would be zero."""
    torch.manual_seed(0)
    ours = DiT(**settings)
    with torch.no_grad():
        for p in ours.parameters():
            if p.requires_grad:
                nn.init.normal_(p, std=0.02)
    theirs = AsDenoiser(to_diffusers(ours))
    return {"dit_edu": ours.to(device), "diffusers": theirs.to(device)}


def forward_calls(models: dict[str, nn.Module], batch: tuple[Tensor, ...]) -> dict[str, Call]:
    """One answer, without gradients."""
    return {name: lambda model=model: model(*batch) for name, model in models.items()}


def training_calls(models: dict[str, nn.Module], batch: tuple[Tensor, ...]) -> dict[str, Call]:
    """One update: noise, loss (with the learnt variance), gradients, AdamW."""

    def calling(model: nn.Module) -> Call:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)

        def call() -> Tensor:
            with torch.enable_grad():
                loss = DIFFUSION.losses(model, *batch)["loss"].mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            return loss.detach()

        return call

    return {name: calling(model) for name, model in models.items()}


def sampling_calls(
    models: dict[str, nn.Module], batch: tuple[Tensor, ...], steps: int
) -> dict[str, Call]:
    """DDIM from the same noise, ours with our sampler and theirs with their scheduler."""
    noise, _, y = batch
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False, set_alpha_to_one=True)

    def theirs() -> Tensor:
        scheduler.set_timesteps(steps)
        x = noise
        for t in scheduler.timesteps:
            out = models["diffusers"](x, t.to(x.device).expand(len(x)), y)  # (B, 2C, H, W)
            x = scheduler.step(out[:, : x.shape[1]], t, x).prev_sample  # (B, C, H, W)
        return x

    def ours() -> Tensor:
        model, shape = models["dit_edu"], tuple(noise.shape)
        return ddim_sample(model, DIFFUSION, shape, y, steps=f"ddim{steps}", noise=noise)

    return {"dit_edu": ours, "diffusers": theirs}


def check_equal(name: str, calls: dict[str, Call], tolerance: float) -> float:
    """How far the two answers are apart, relative to their size; a race of two tasks is void."""
    ours, theirs = (calls[who]().float() for who in ("dit_edu", "diffusers"))
    off = float((ours - theirs).abs().max() / theirs.abs().max())
    if not off <= tolerance:
        raise RuntimeError(f"{name}: the answers differ by {off:.2g}; allowed: {tolerance:g}.")
    return off


def race(
    calls: dict[str, Call], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, Any]:
    """Let both take turns; medians, minima, and the ratio ours / theirs with its quartiles."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for k in range(WARM_UP + rounds):
        order = list(calls) if k % 2 else list(calls)[::-1]
        for name in order:
            start = clock()
            calls[name]()
            seconds[name].append(clock() - start)
    seconds = {name: times[WARM_UP:] for name, times in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["dit_edu"], seconds["diffusers"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    minima = {name: min(times) for name, times in seconds.items()}
    return {
        "rounds": rounds,
        "seconds": {name: plain(statistics.median(times)) for name, times in seconds.items()},
        "ratio": plain(middle),
        "ratio_quartiles": plain([low, high]),
        "ratio_of_minima": plain(minima["dit_edu"] / minima["diffusers"]),
    }


@contextmanager
def precision(device: str, dtype: str) -> Iterator[None]:
    """No gradients unless asked for; in bfloat16 by autocast, as the training loop does it."""
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
        yield


def bench(
    settings: dict[str, Any],
    *,
    device: str = "cpu",
    batch_size: int = 2,
    steps: int = 50,
    rounds: dict[str, int] = ROUNDS,
    modes: tuple[tuple[str, str | None], ...] = (("float32", None),),
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Everything that ``results/bench.json`` says.

    Args:
        settings: of the model.
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: images at once.
        steps: of the sampler.
        rounds: how many of each case.
        modes: pairs of a precision and a backend of torch.compile, or None for eager execution.
        report: called with a line for each row.

    Raises:
        RuntimeError: the two models do not do the same.
    """
    rows = []
    for dtype, backend in modes:
        models = contestants(settings, device)
        params = {
            name: sum(p.numel() for p in model.parameters() if p.requires_grad)
            for name, model in models.items()
        }
        ours = models["dit_edu"]
        g = torch.Generator().manual_seed(0)
        x = torch.randn(batch_size, ours.in_channels, *ours.input_size, generator=g)
        t, y = (torch.randint(k, (batch_size,), generator=g) for k in (1000, ours.num_classes))
        batch = tuple(tensor.to(device) for tensor in (x, t, y))
        if backend:
            for model in models.values():
                model.compile(backend=backend, fullgraph=True)
        tolerance = 0.05 if dtype == "bfloat16" else 1e-3
        with precision(device, dtype):
            cases = {
                "forward": forward_calls(models, batch),
                "sampling": sampling_calls(models, batch, steps),
                "training step": training_calls(models, batch),  # last: it changes the weights
            }
            for case, calls in cases.items():
                for model in models.values():
                    model.train(case == "training step")
                # in training both drop labels, each its own, and so their losses differ
                off = None if case == "training step" else check_equal(case, calls, tolerance)
                row = {"case": case, "precision": dtype, "compiled": backend}
                row |= race(calls, rounds[case], timer if device == "cuda" else time.process_time)
                row["difference"] = off and plain(off)
                rows.append(row)
                report(f"{case}, {dtype}, {backend or 'eager'}: ratio {row['ratio']:.3f} "
                       f"{row['ratio_quartiles']}, {row['seconds']}")  # fmt: skip
        torch.compiler.reset()
    return {
        "name": "bench",
        "about": "DiT against diffusers' DiT with the same weights; ratio = dit_edu / diffusers",
        "settings": settings,
        "batch_size": batch_size,
        "steps": steps,
        "params": params,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        **provenance(),
        "rows": rows,
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark on a device and write its file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is one")
    parser.add_argument("--out", type=Path, help="results/bench.json; on a GPU bench-cuda.json")
    given = parser.parse_args(arguments)
    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    gpu = device == "cuda"
    modes = (("float32", None), ("bfloat16", None), ("bfloat16", "inductor"))
    settings = {"input_size": 32, **PRESETS[PRESET]}
    found = bench(
        settings,
        device=device,
        batch_size=64 if gpu else 2,
        rounds={case: 5 * n if gpu else n for case, n in ROUNDS.items()},
        modes=modes if gpu else modes[:1],
    )
    write_json(given.out or RESULTS / ("bench-cuda.json" if gpu else "bench.json"), found)


if __name__ == "__main__":
    main()
