"""Many fits of tiny models with random settings, in one process.

Every fit must end with a working model, or with an error of this package that leaves the module as it was. Anything
else is a fault, which is printed with the settings and the command that repeats it:

    python tests/soak.py --fits 200 --seed 0
    python tests/soak.py --minutes 2
    python tests/soak.py --seed 0 --only 17

A working model has finite weights, has lost no more than was asked for, and gives equal outputs from its state dict,
its checkpoint, its dense twin and its exported folder, after resuming, and with its plan. The exit status is 1 if there
was a fault.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from itertools import count

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from helpers.soak.fit import FAULT, Outcome, run
from helpers.soak.settings import Settings, draw
from rich.console import Console
from rich.table import Table


def main(arguments: list[str] | None = None) -> int:
    """Run the soak, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of the settings (default 0)")
    limits = parser.add_mutually_exclusive_group()
    limits.add_argument("--fits", type=int, default=200, help="number of draws of settings (default 200)")
    limits.add_argument("--minutes", type=float, help="run time, instead of a number of fits")
    limits.add_argument("--only", type=int, help="number of the one draw to run")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    console = Console()
    start, outcomes = time.monotonic(), Counter[tuple[str, str]]()
    for number in count() if options.only is None else (options.only,):
        elapsed = time.monotonic() - start
        if options.only is None and (elapsed > 60 * options.minutes if options.minutes else number >= options.fits):
            break
        settings = draw(options.seed, number)
        outcome = run(settings)
        outcomes[outcome.kind, outcome.subject] += 1
        if options.only is not None:
            console.print(str(settings), outcome.kind, outcome.subject, markup=False, highlight=False)
        if outcome.kind == FAULT:
            report_fault(console, options.seed, number, settings, outcome)
    console.print(summary(outcomes, time.monotonic() - start))
    return int(any(kind == FAULT for kind, _ in outcomes))


def report_fault(console: Console, seed: int, number: int, settings: Settings, outcome: Outcome) -> None:
    """Print a fault with its settings, its traceback and the command that repeats it."""
    repeat = f"repeat: python tests/soak.py --seed {seed} --only {number}"
    text = f"{FAULT}: {outcome.subject}\n{settings}\n{outcome.details}{repeat}\n"
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def summary(outcomes: Counter[tuple[str, str]], seconds: float) -> Table:
    """Return a table of the outcomes by kind."""
    table = Table(title=f"{outcomes.total()} fits in {seconds:.0f} s")
    for column in ("outcome", "what", "fits"):
        table.add_column(column)
    for (kind, subject), number in sorted(outcomes.items(), key=lambda item: (item[0][0], -item[1])):
        table.add_row(kind, subject, str(number))
    return table


if __name__ == "__main__":
    sys.exit(main())
