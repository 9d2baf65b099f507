"""A sharded fit from a given plan on two CPU processes, then its resume: fsdp_fit.py PLAN FOLDER [CHECKPOINT]."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from helpers.entries import Entering, train_loader
from helpers.own import make_loader
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers.models.bert.modeling_bert import BertLayer

from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.process_group import close_process_group


class CPUFSDP(FSDPStrategy):
    """Lightning has FSDP on GPUs only; torch can do it over gloo, if it is told the device."""

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu")

    def _setup_model(self, model: nn.Module) -> nn.Module:
        device = torch.device("cpu")
        return FullyShardedDataParallel(
            model, device_id=device, sharding_strategy=self.sharding_strategy, **self.kwargs
        )

    def barrier(self, name: str | None = None) -> None:
        distributed.barrier()


class Plain(Entering):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(plan: Path, folder: Path, *ckpt_path: str) -> None:
    torch.set_num_threads(1)
    L.seed_everything(1)
    policy = ModuleWrapPolicy({BertLayer})
    trainer = L.Trainer(
        accelerator="cpu",
        strategy=CPUFSDP(auto_wrap_policy=policy, state_dict_type="sharded", use_orig_params=True),
        devices=2,
        max_epochs=2 if ckpt_path else 1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[PGBCallback(plan=plan), ModelCheckpoint(folder, "resumed" if ckpt_path else "end")],
    )
    module = Plain(seed=3 if ckpt_path else 0)
    trainer.fit(module, train_loader(), make_loader(16), ckpt_path=ckpt_path[0] if ckpt_path else None)
    # In a file each, and no sum over the ranks: a rank that ended right behind a collective might be aborted, since
    # FSDP keeps the process group alive, so that closing it does not end its threads.
    kept = sum(p.numel() for name, p in module.named_parameters() if "layer" in name)
    torch.save({"step": trainer.global_step, "parameters": kept}, folder / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
    close_process_group()
