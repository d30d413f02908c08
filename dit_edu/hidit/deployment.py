"""Getting a trained denoiser out of the training script: eight-bit weights, and graphs for others.

INT8 by torchao: a linear map y = W x + b becomes integers times a scale,

    y_i ≈ s_i s_x Σ_j Ŵ_ij x̂_j + b_i,   Ŵ = round(W / s), x̂ = round(x / s_x), both in [-128, 127],

with a scale s_i for each row of W. The scale of x is what kinds differ in: none (x stays float),
one found anew for every token, or one that calibration has fixed.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu._checks import check_choice, check_positive_int
from dit_edu.interpolant import Interpolant

#: ``weights``: stored in 8 bits, computed in float. ``dynamic``: computed in integers, with a scale
#: for each token. ``static``: the same, with one scale for all, from calibration.
KINDS = ("weights", "dynamic", "static")
LARGEST = 127  # of a signed 8-bit integer, on the side that has fewer
Batch = tuple[Tensor, Tensor, Tensor]  # x (B, C, H, W), t (B,), y (B,)


def quantized(model: nn.Module, kind: str, ranges: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A copy whose linear maps work with eight-bit weights. On the CPU integers are really used.

    Args:
        model: any module; it stays as it is.
        kind: one of :data:`KINDS`.
        ranges: for ``static``: the largest absolute value that each linear map is fed, by name, see
            :func:`input_ranges`.

    Returns:
        In evaluation mode.

    Raises:
        ValueError: ``kind`` is unknown, ``static`` lacks ranges (or another kind has them), or a
            linear map has none.
    """
    check_choice("kind", kind, KINDS)
    if (kind == "static") != (ranges is not None):
        given = "None" if ranges is None else "given"
        raise ValueError(f"kind={kind!r} with ranges={given}; allowed: ranges for 'static' alone.")
    from torchao.quantization import quantize_  # seconds of import, only where it is needed
    from torchao.quantization.granularity import PerRow, PerTensor
    from torchao.quantization.quant_api import (
        Int8DynamicActivationInt8WeightConfig,
        Int8StaticActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
    )

    other = copy.deepcopy(model).eval().requires_grad_(False)
    for name, layer in _linear_maps(other):
        if kind == "weights":
            config = Int8WeightOnlyConfig(set_inductor_config=False)
        elif kind == "dynamic":
            config = Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
        else:
            if name not in ranges:
                raise ValueError(f"ranges has no entry for {name!r}.")
            scale = (ranges[name] / LARGEST).clamp(min=1e-8)  # s_x
            config = Int8StaticActivationInt8WeightConfig(
                scale, granularity=[PerTensor(), PerRow()], set_inductor_config=False
            )
        quantize_(layer, config, filter_fn=lambda module, _: isinstance(module, nn.Linear))
    return other


@torch.no_grad()
def input_ranges(model: nn.Module, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """The largest absolute value that each linear map is fed on some batches, by name.

    Returns:
        Tensors of one number with as many dimensions as what is fed, (1, 1) or (1, 1, 1).

    Raises:
        ValueError: there are no batches.
    """
    found: dict[str, Tensor] = {}

    def look(name: str):
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            most = inputs[0].abs().amax(dim=tuple(range(inputs[0].ndim)), keepdim=True)
            found[name] = torch.maximum(found.get(name, most), most)

        return hook

    hooks = [layer.register_forward_pre_hook(look(name)) for name, layer in _linear_maps(model)]
    try:
        for batch in batches:
            model(*batch)
    finally:
        for handle in hooks:
            handle.remove()
    if not found:
        raise ValueError("batches holds nothing to calibrate with; allowed: one batch or more.")
    return found


def noisy_batches(
    process: Interpolant,
    x0: Tensor,
    y: Tensor,
    bins: int,
    generator: torch.Generator,
) -> list[Batch]:
    """What a denoiser will be fed, one batch for each range of the noise level, clean first.

    Args:
        process: makes the noisy images.
        x0, y: images (n, C, H, W) and labels (n,), used in every bin.
        bins: number of ranges of t.
        generator: of steps and noise.

    Raises:
        TypeError, ValueError: ``bins`` is no positive integer.
    """
    width = process.num_timesteps / check_positive_int("bins", bins)
    batches = []
    for b in range(bins):
        part = torch.rand(len(x0), generator=generator)  # (n,)
        t = ((b + part) * width).long().clamp(max=process.num_timesteps - 1)  # (n,)
        noise = torch.randn(x0.shape, generator=generator)
        batches.append((process.q_sample(x0, t, noise), t, y))
    return batches


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, with what eight-bit ones are really made of."""
    return sum(_bytes(tensor) for tensor in (*model.parameters(), *model.buffers()))


def to_program(model: nn.Module, batch: Batch) -> torch.export.ExportedProgram:
    """The model as a graph that needs none of our code, for any number of images.

    Args:
        model: a denoiser whose work does not depend on what it is fed (no router).
        batch: an example; at least two images, since one would be taken for "always one".

    Raises:
        ValueError: the example holds fewer than two images.
    """
    if len(batch[0]) < 2:
        raise ValueError(f"batch of {len(batch[0])} images; allowed: at least 2.")
    many = {0: torch.export.Dim("batch", min=1, max=65536)}
    return torch.export.export(model.eval(), batch, dynamic_shapes=(many, many, many))


def to_onnx(program: torch.export.ExportedProgram, path: str | os.PathLike[str]) -> None:
    """Write a program as an ONNX file, which other runtimes read; its inputs are x, t and y.

    Raises:
        OSError: it cannot be written.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, about its own trees
        onnx = torch.onnx.export(program, (), dynamo=True, verbose=False)
    onnx.save(os.fspath(path))


def _linear_maps(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    return (pair for pair in model.named_modules() if isinstance(pair[1], nn.Linear))


def _bytes(tensor: Any) -> int:
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()
