"""Diffusion Transformers, from the first noise step to dynamic computation: the book's code."""

import logging

__version__ = "0.1.0"

# diffusers and peft load torchao where it is installed; it reports the kernels of other machines.
for _name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao"):
    logging.getLogger(_name).setLevel(logging.ERROR)
