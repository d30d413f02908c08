"""The cost calculator: what a published DiT, or a variant, asks of the machine at hand."""

from __future__ import annotations

import re
from dataclasses import asdict, replace

import torch

from dit_edu._checks import check_choice, check_positive_int
from dit_edu.dit import DiT
from dit_edu.lab.devices import accelerator_on, device_name
from dit_edu.lab.profile import count
from dit_edu.scaling import Architecture, sampling_cost

FACTOR = 8  # an encoder makes one latent pixel of so many pixels, each way
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def at_resolution(name: str, resolution: str, patch_size: int | None = None) -> Architecture:
    """A published model for images of a resolution in pixels, on latents an eighth of their side.

    Args:
        name: ``DiT-S/8`` to ``DiT-XL/2``.
        resolution: the image's side, ``"256"``, or height and width, ``"512x256"``.
        patch_size: p in latent pixels, where it is another than the name's.

    Raises:
        TypeError, ValueError: an argument is not as above, or does not fit the others.
    """
    sides = re.fullmatch(r"(\d+)(?:x(\d+))?", resolution)
    height, width = (int(side or sides[1]) for side in sides.groups()) if sides else (0, 0)
    if not (height and width) or height % FACTOR or width % FACTOR:
        raise ValueError(
            f"resolution={resolution!r}; allowed: a multiple of {FACTOR} in pixels, or two, as 256 "
            "or 512x256."
        )
    own = {} if patch_size is None else {"patch_size": patch_size}
    return Architecture.from_preset(name, input_size=(height // FACTOR, width // FACTOR), **own)


def forward_seconds(
    model: Architecture,
    *,
    batch: int = 1,
    device: str = "auto",
    dtype: str = "float32",
    repeats: int = 5,
) -> float:
    """The time of one forward pass of the whole batch, measured here on a shallow model.

    All blocks of a DiT take the same time. So 1 and 3 blocks are built and timed, and the line
    through the two is followed to the model's depth: the weights of DiT-XL need not fit.

    Args:
        model: its sizes; weights are random, which does not change the time.
        batch: images at once; twice as many with guidance.
        device: see :func:`dit_edu.lab.devices.accelerator_on`.
        dtype: ``"float32"`` or ``"bfloat16"``, of weights and images.
        repeats: of which the median is taken.

    Raises:
        TypeError, ValueError: an argument is not allowed.
    """
    check_positive_int("batch", batch)
    check_positive_int("repeats", repeats)
    chosen = DTYPES[check_choice("dtype", dtype, DTYPES)]
    where = accelerator_on(device).device
    x = torch.randn(batch, model.in_channels, *model.size, device=where, dtype=chosen)
    t = y = torch.zeros(batch, dtype=torch.long, device=where)
    depths, seconds = (1, 3), []
    for depth in depths:
        shallow = DiT(**asdict(replace(model, depth=depth))).to(where, chosen)
        seconds.append(count(shallow, x, t, y, repeats=repeats).seconds)
    block = max(0.0, seconds[1] - seconds[0]) / (depths[1] - depths[0])
    return seconds[0] + (model.depth - depths[0]) * block


def receipt(
    model: Architecture,
    *,
    steps: int = 250,
    scale: float = 1.0,
    batch: int = 1,
    device: str | None = "auto",
    dtype: str = "float32",
) -> str:
    """The cost of drawing a batch, as lines to read.

    Args:
        model, steps, scale, batch: see :func:`dit_edu.scaling.sampling_cost`.
        device: where the time is measured; None leaves it out.
        dtype: see :func:`forward_seconds`.

    Raises:
        TypeError, ValueError: an argument is not allowed.
    """
    number = DTYPES[check_choice("dtype", dtype, DTYPES)].itemsize
    bill = sampling_cost(model, steps=steps, scale=scale, batch=batch, bytes_per_number=number)
    parts, passes = model.macs(), bill.passes // steps
    total = sum(parts.values())
    shares = ", ".join(f"{name} {part / total:.1%}" for name, part in parts.items())
    guided = f", guidance {scale:g}" if passes > 1 else ""
    lines = [
        f"parameters    {bill.params / 1e6:.2f} M",
        f"tokens        {model.tokens:,} of width {model.hidden_size}, in {model.depth} blocks",
        f"forward pass  {_macs(total)}: {shares}",
        f"one image     {_macs(bill.macs)}: {bill.passes} passes ({steps} steps{guided})",
        f"memory        {_bytes(bill.memory)} in {dtype}: weights {_bytes(bill.weights)}, "
        f"activations about {_bytes(bill.activations)} at batch {batch}",
    ]
    if device is not None:
        seconds = forward_seconds(model, batch=passes * batch, device=device, dtype=dtype)
        lines.append(
            f"time          {steps * seconds / batch:.3g} s for an image, {seconds:.3g} s for one "
            f"pass of the batch, measured on {device_name(device)}"
        )
    return "\n".join(lines)


def _macs(value: float) -> str:
    return f"{value / 1e12:,.2f} TMACs" if value >= 1e12 else f"{value / 1e9:.2f} GMACs"


def _bytes(value: float) -> str:
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"
