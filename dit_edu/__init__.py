"""Diffusion Transformers, from the first noise step to dynamic computation: the book's code."""

import logging

__version__ = "0.1.0"

# Libraries that report what they do not find: kernels of other machines, torchvision.
for _name in (
    "torchao",  # diffusers and peft load it where it is installed
    "torch.utils._pytree",
    "diffusers.quantizers.torchao",
    "torch.onnx._internal.exporter._registration",
):
    logging.getLogger(_name).setLevel(logging.ERROR)
