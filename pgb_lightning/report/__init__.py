"""Reports on a pruning run: tables for the terminal, an HTML page, and figures."""

from pgb_lightning.report.facts import Facts, Latency
from pgb_lightning.report.folder import write_report
from pgb_lightning.report.notes import PruningNotes
from pgb_lightning.report.page import render_page
from pgb_lightning.report.tables import plan_table, render

__all__ = ["Facts", "Latency", "PruningNotes", "plan_table", "render", "render_page", "write_report"]
