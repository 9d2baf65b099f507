"""`pgb report`: the page of a plan, or of a checkpoint that holds one."""

from __future__ import annotations

from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console

from pgb_lightning.checkpoints import load_checkpoint
from pgb_lightning.plan import PruningPlan
from pgb_lightning.report.facts import Facts, digest
from pgb_lightning.report.folder import write_report
from pgb_lightning.report.tables import plan_table


def run_report(path: str, output_dir: str = "report") -> Path:
    """Write the report of a pruning: a page, report.json, and figures if matplotlib is installed.

    Args:
        path: A plan.json, or a Lightning checkpoint of a fit with PGBCallback. With PGBReport beside it, the checkpoint
            holds what was measured too.
        output_dir: Folder for the report; files of an earlier report in it are replaced, others stay.

    Returns:
        The page.

    Raises:
        MisconfigurationException: ``path`` holds no plan, or the folder cannot be written.
    """
    plan, facts = _read(Path(path))
    try:
        page = write_report(output_dir, plan, facts)
    except OSError as error:
        raise MisconfigurationException(f"output_dir={output_dir!r} cannot be written: {error}.") from None
    console = Console()
    console.print(plan_table(plan))
    console.print(f"Report: {page}")
    return page


def _read(path: Path) -> tuple[PruningPlan, Facts | None]:
    if not path.is_file():
        raise MisconfigurationException(f"path={str(path)!r} is not a file; give a plan.json or a checkpoint.")
    if path.suffix == ".json":
        try:
            return PruningPlan.load(path), None
        except ValueError as error:
            raise MisconfigurationException(f"path={error}") from None
    try:
        states = load_checkpoint(path).get("callbacks", {})
    except ValueError as error:
        raise MisconfigurationException(f"path={error}") from None
    found = states.get("PGBCallback", {}).get("plan")
    if not found:
        raise MisconfigurationException(
            f"path={str(path)!r} holds no plan: it was saved with its weights only, or of a dense model. Give the "
            "plan.json of the run, which lies in its folder."
        )
    plan = PruningPlan.from_dict(found)
    facts = states.get("PGBReport", {}).get("facts")
    known = Facts.from_dict(facts) if facts else None
    return plan, known if known is not None and known.plan == digest(plan) else None
