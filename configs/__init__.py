"""Configuration files for the ``pgb`` command, installed as ``pgb_lightning.configs``."""
