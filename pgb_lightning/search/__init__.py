"""The search over shapes: candidates, their cost, and the choice of one per sublayer."""

from pgb_lightning.search.candidates import Candidate, CandidateCost, list_candidates
from pgb_lightning.search.costs import candidate_cost
from pgb_lightning.search.knapsack import solve_knapsack
from pgb_lightning.search.latency_table import LatencyTable, measure_table
from pgb_lightning.search.speedup import meet_speedup

__all__ = [
    "Candidate",
    "CandidateCost",
    "LatencyTable",
    "candidate_cost",
    "list_candidates",
    "measure_table",
    "meet_speedup",
    "solve_knapsack",
]
