"""A Diffusion Transformer of which only low-rank adapters are trained.

A LoRA layer adds to a trained linear map W, which stays as it is, the product of two narrow ones,
``y = (W + B A) x`` with A (r, D_in) and B (D_out, r). B starts at 0, so the model starts as the one
that it is made from. The adapters are those of the library peft.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from dit_edu._checks import check_positive_int
from dit_edu.dit import DiT

#: The linear maps of attention and MLP, which get an adapter in every block.
TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
TABLE = "y_embedder.embedding_table.weight"  # of the labels, (K + 1, D)


class LoRADiT(DiT):
    """A DiT of which only low-rank adapters and the table of labels are trained.

    Args:
        rank: r of the adapters.
        settings: those of :class:`~dit_edu.dit.DiT`.

    Raises:
        TypeError, ValueError: ``rank`` is no positive integer, or a setting is not allowed.

    Source: Hu et al. 2022.
    """

    def __init__(self, *, rank: int, **settings: Any) -> None:
        from peft import LoraConfig, inject_adapter_in_model  # seconds, only where it is needed

        check_positive_int("rank", rank)
        super().__init__(**settings)
        self.settings = settings
        # alpha = r: the product enters with factor 1 at every rank
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS), self)
        self.get_parameter(TABLE).requires_grad_(True)  # a new class needs its row

    def merged(self) -> DiT:
        """The same function as a plain DiT, with W + B A in the place of W."""
        from peft.tuners.lora import LoraLayer

        other = copy.deepcopy(self)
        for layer in other.modules():
            if isinstance(layer, LoraLayer):
                layer.merge()
        weights = {
            name.replace(".base_layer", ""): weight
            for name, weight in other.state_dict().items()
            if ".lora_" not in name
        }
        with torch.random.fork_rng(devices=[]):
            plain = DiT(**self.settings).to(next(self.parameters()))
        plain.load_state_dict(weights)
        return plain.train(self.training)

    def adapters(self) -> dict[str, Tensor]:
        """What training changes, by name: the adapters and the table of labels."""
        weights = self.state_dict()
        return {name: w for name, w in weights.items() if ".lora_" in name or name == TABLE}
