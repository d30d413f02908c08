"""DDDiT: a Diffusion Transformer that decides what to compute, part by part.

The name comes from notes that describe an architecture without a paper and without code that runs.
The real relative is DyDiT (Zhao et al. 2025). Here is a definition of it: each part is a module of
its own, and is measured against models that decide nothing and cost the same.
"""

from dit_edu.dddit.model import PRESETS, DDDiT

__all__ = ["PRESETS", "DDDiT"]
