"""Other people's ways to prune, in our own words and on our own footing: one a file, to be measured beside PGB."""

from pgb_lightning.peers.callback import PeerCallback
from pgb_lightning.peers.masks import make_permanent
from pgb_lightning.peers.registry import PEERS, Calibrated, Peer

__all__ = ["PEERS", "Calibrated", "Peer", "PeerCallback", "make_permanent"]
