"""The parts of :class:`~pgb_lightning.callbacks.PGBCallback`; no other callback uses them."""
