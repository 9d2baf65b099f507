"""What :class:`~pgb_lightning.callbacks.PGBCallback` alone uses."""
