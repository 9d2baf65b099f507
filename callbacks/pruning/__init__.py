"""The parts of :class:`~pgb_lightning.callbacks.PGBCallback`. Other callbacks do not use them."""
