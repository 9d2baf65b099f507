"""Runtimes other than PyTorch: their packages, the layers that they run fastest, and modules loaded in them."""
