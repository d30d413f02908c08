"""Diffusion Transformers, from the first noise step to dynamic computation: the book's code."""

__version__ = "0.1.0"
