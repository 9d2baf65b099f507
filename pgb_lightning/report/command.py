"""The command ``pgb report``."""

from __future__ import annotations

from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console

from pgb_lightning.checkpoints import load_checkpoint
from pgb_lightning.plan import PruningPlan
from pgb_lightning.report.facts import Facts, plan_digest
from pgb_lightning.report.folder import write_report
from pgb_lightning.report.tables import plan_table


def run_report(path: str, output_dir: str = "report") -> Path:
    """Write the report of a pruning run: a page, report.json, and figures if matplotlib is installed.

    Args:
        path: A plan.json, or a Lightning checkpoint of a fit with PGBCallback. If the fit also had a PGBReport, the
            checkpoint holds its measurements.
        output_dir: Folder for the report. Files of an earlier report are overwritten, other files are kept.

    Returns:
        The path of the page.

    Raises:
        MisconfigurationException: If ``path`` holds no plan, or the folder cannot be written.
    """
    plan, facts = _read(Path(path))
    try:
        page = write_report(output_dir, plan, facts)
    except OSError as error:
        raise MisconfigurationException(
            f"output_dir={output_dir!r} cannot be written ({error}). Choose another folder."
        ) from None
    console = Console()
    console.print(plan_table(plan))
    console.print(f"Report: {page}")
    return page


def _read(path: Path) -> tuple[PruningPlan, Facts | None]:
    if not path.is_file():
        raise MisconfigurationException(f"path={str(path)!r} is not a file. Pass a plan.json or a checkpoint.")
    if path.suffix == ".json":
        try:
            return PruningPlan.load(path), None
        except ValueError as error:
            raise MisconfigurationException(f"path={error}") from None
    try:
        states = load_checkpoint(path).get("callbacks", {})
    except ValueError as error:
        raise MisconfigurationException(f"path={error}") from None
    stored_plan = states.get("PGBCallback", {}).get("plan")
    if not stored_plan:
        raise MisconfigurationException(
            f"path={str(path)!r} holds no plan: it is a weights-only checkpoint, or its model is dense. Pass the "
            "plan.json in the folder of the run."
        )
    plan = PruningPlan.from_dict(stored_plan)
    stored = states.get("PGBReport", {}).get("facts")
    facts = Facts.from_dict(stored) if stored else None
    return plan, facts if facts is not None and facts.plan == plan_digest(plan) else None
