"""All that is tested on two CPU processes, in one start: two_processes.py FOLDER MODEL SST2 STSB SQUAD."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from helpers.programs import (
    ddp_answers,
    ddp_distillation,
    ddp_exact_resume,
    ddp_fit,
    ddp_label_free,
    ddp_lengths,
    ddp_predict,
    ddp_report,
    ddp_unequal_ranks,
)
from pgb_lightning.process_group import close_process_group


def main(root: Path, model: str, sst2: str, stsb: str, squad: str) -> None:
    """Run the programs one after the other, each in a folder of its own."""
    torch.set_num_threads(1)

    def folder(name: str) -> Path:
        (root / name).mkdir(exist_ok=True)
        return root / name

    ddp_fit.main(folder("fit"))
    ddp_fit.main(folder("resumed"), ckpt_path=root / "fit" / "end.ckpt")
    ddp_exact_resume.main(folder("exact"))
    ddp_distillation.main(folder("distillation"))
    ddp_label_free.main(folder("label-free"))
    ddp_report.main(folder("report"))
    ddp_lengths.main(folder("lengths"), model, sst2)
    ddp_predict.main(folder("predictions"), model, stsb)
    ddp_predict.main(folder("repeated"), model, stsb, repeat=True)
    ddp_answers.main(folder("answers"), model, squad)
    ddp_unequal_ranks.main(folder("different"))
    ddp_unequal_ranks.main(folder("failing"), failing=True)
    ddp_unequal_ranks.main(folder("one-silent"), silent_ranks=(1,))
    ddp_unequal_ranks.main(folder("silent"), silent_ranks=(0, 1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
    close_process_group()
