"""``python -m pgb_lightning.report``, the same as ``pgb report``."""

from jsonargparse import auto_cli

from pgb_lightning.report.command import run_report

if __name__ == "__main__":
    auto_cli(run_report, as_positional=False)
