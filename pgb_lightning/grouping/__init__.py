"""Grouped weight pruning: group numbers (Algorithm 1, PGB-COMPRESSION) and permutations (Algorithm 2)."""

from pgb_lightning.grouping.assignment import assign
from pgb_lightning.grouping.compensated import compensated_groups
from pgb_lightning.grouping.group_numbers import (
    ImportanceSummary,
    allowed_groups,
    assign_group_numbers,
    determine_group_number,
)
from pgb_lightning.grouping.losses import predict_losses
from pgb_lightning.grouping.permutation import Blocks, balanced_groups, greedy_groups, group, permute
from pgb_lightning.grouping.reachable import check_reachable, nearest_reachable
from pgb_lightning.grouping.threshold import adjust_to_budget, choose_group_numbers, numbers_by_threshold

__all__ = [
    "Blocks",
    "ImportanceSummary",
    "adjust_to_budget",
    "allowed_groups",
    "assign",
    "assign_group_numbers",
    "balanced_groups",
    "check_reachable",
    "choose_group_numbers",
    "compensated_groups",
    "determine_group_number",
    "greedy_groups",
    "group",
    "nearest_reachable",
    "numbers_by_threshold",
    "permute",
    "predict_losses",
]
