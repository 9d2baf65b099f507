"""Runtimes other than PyTorch: required packages, layers optimized for them, and loading of modules."""
