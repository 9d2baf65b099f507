"""Grouped weight pruning: group numbers (Algorithm 1) and permutations (Algorithm 2)."""

from pgb_lightning.grouping.compensated import compensated_groups
from pgb_lightning.grouping.group_numbers import Demand, allowed_groups, compress, determine_group_number
from pgb_lightning.grouping.permutation import Blocks, assign, balanced_groups, greedy_groups, group, permute
from pgb_lightning.grouping.reachable import check_reachable, nearest_reachable
from pgb_lightning.grouping.threshold import allocate, settle

__all__ = [
    "Blocks",
    "Demand",
    "allocate",
    "allowed_groups",
    "assign",
    "balanced_groups",
    "check_reachable",
    "compensated_groups",
    "compress",
    "determine_group_number",
    "greedy_groups",
    "group",
    "nearest_reachable",
    "permute",
    "settle",
]
