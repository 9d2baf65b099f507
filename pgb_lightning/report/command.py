"""The command ``pgb report``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console

from pgb_lightning.checkpoints import find_states, load_checkpoint, state_key
from pgb_lightning.plan import PruningPlan
from pgb_lightning.report.facts import Facts, plan_digest
from pgb_lightning.report.folder import write_report
from pgb_lightning.report.tables import plan_table


def run_report(path: str, output_dir: str = "report", encoder: str | None = None) -> Path:
    """Write the report of a pruning run: a page, report.json, and figures if matplotlib is installed.

    Args:
        path: A plan.json, or a Lightning checkpoint of a fit with PGBCallback. If the fit also had a PGBReport, the
            checkpoint holds its measurements.
        output_dir: Folder for the report. Files of an earlier report are overwritten, other files are kept.
        encoder: The ``encoder`` of the PGBCallback; required if the checkpoint holds the plans of several.

    Returns:
        The path of the page.

    Raises:
        MisconfigurationException: If ``path`` holds no plan, or the folder cannot be written.
    """
    plan, facts = _read(Path(path), encoder)
    try:
        page = write_report(output_dir, plan, facts)
    except OSError as error:
        raise MisconfigurationException(
            f"output_dir={output_dir!r} cannot be written ({error}). Choose another folder."
        ) from None
    console = Console()
    console.print(plan_table(plan))
    console.print(f"Report: {page}", markup=False, highlight=False, soft_wrap=True)  # brackets in a path are no markup
    return page


def _read(path: Path, encoder: str | None) -> tuple[PruningPlan, Facts | None]:
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
    plan = _stored_plan(states, path, encoder)
    digest = plan_digest(plan)
    stored = [state["facts"] for state in find_states(states, "PGBReport").values() if state.get("facts")]
    return plan, next((facts for facts in map(Facts.from_dict, stored) if facts.plan == digest), None)


def _stored_plan(states: Mapping[str, Any], path: Path, encoder: str | None) -> PruningPlan:
    """Return the one plan among the callback states of a checkpoint, or that of an encoder."""
    plans = {key: state["plan"] for key, state in find_states(states, "PGBCallback").items() if state.get("plan")}
    if not plans:
        raise MisconfigurationException(
            f"path={str(path)!r} holds no plan: it is a weights-only checkpoint, or its model is dense. Pass the "
            "plan.json in the folder of the run."
        )
    key = next(iter(plans)) if encoder is None and len(plans) == 1 else state_key("PGBCallback", encoder)
    if key not in plans:
        raise MisconfigurationException(
            f"encoder={encoder!r} does not name one of the plans in path={str(path)!r}. Use the encoder of one of "
            f"{', '.join(plans)}."
        )
    return PruningPlan.from_dict(plans[key])
