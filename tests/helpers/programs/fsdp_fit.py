"""A sharded fit with a given plan on two CPU processes, then its resumption: fsdp_fit.py PLAN FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers.models.bert.modeling_bert import BertLayer

from helpers.entries import ResumableModule, train_loader
from helpers.own import make_loader
from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.process_group import close_process_group


class CPUFSDP(FSDPStrategy):
    """FSDP over gloo. torch supports it if it is told the device; Lightning supports FSDP on GPUs only."""

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


class WithoutScheduler(ResumableModule):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def fit(plan: Path, folder: Path, name: str, epochs: int, seed: int, ckpt_path: Path | None) -> None:
    """Fit, and save this rank's number of steps and of parameters in layers."""
    L.seed_everything(1)
    policy = ModuleWrapPolicy({BertLayer})
    trainer = L.Trainer(
        accelerator="cpu",
        strategy=CPUFSDP(auto_wrap_policy=policy, state_dict_type="sharded", use_orig_params=True),
        devices=2,
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[PGBCallback(plan=plan), ModelCheckpoint(folder, name)],
    )
    module = WithoutScheduler(seed=seed)
    trainer.fit(module, train_loader(), make_loader(16), ckpt_path=ckpt_path)
    kept = sum(p.numel() for name, p in module.named_parameters() if "layer" in name)
    # Every rank saves its own part. A collective sum here could abort a rank that exits right after it: FSDP keeps the
    # process group alive, so closing it does not end its threads.
    torch.save({"step": trainer.global_step, "parameters": kept}, folder / f"{name}{trainer.global_rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    plan, folder = Path(sys.argv[1]), Path(sys.argv[2])
    fit(plan, folder, "end", epochs=1, seed=0, ckpt_path=None)
    fit(plan, folder, "resumed", epochs=2, seed=3, ckpt_path=folder / "end.ckpt")
    close_process_group()
