"""HiDiT: a hierarchical Diffusion Transformer, part by part.

The name comes from notes that describe an architecture without a paper and without code that runs.
Here is a definition of it: each part is a module of its own, and is measured against a plain DiT.
"""

from dit_edu.hidit.model import PRESETS, HiDiT

__all__ = ["PRESETS", "HiDiT"]
