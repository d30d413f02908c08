"""Diffusion Transformers, from the first noise step to dynamic computation: the code of the book."""

__version__ = "0.1.0"
