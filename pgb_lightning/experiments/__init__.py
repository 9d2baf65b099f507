"""Experiments and figures of the documentation. No other package imports this one."""
