"""The parts of ``tests/soak.py``: random settings, a module and data made from them, and the checks after a fit."""
