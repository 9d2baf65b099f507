"""The base class of the data modules: batches, calibration, caching and settings."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from helpers.fakes import quiet_trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from transformers import AutoConfig, PreTrainedTokenizerFast

from pgb_lightning.callbacks.pruning.calibration_data import shard_batches
from pgb_lightning.datamodules import GLUEDataModule, TextDataModule
from pgb_lightning.datamodules.sampling import LengthGroupedSampler, calibration_rows
from pgb_lightning.modules import TextClassification

Make = Callable[..., GLUEDataModule]


@pytest.fixture
def make(tiny_model_folder: Callable[..., Path], glue_folder: Callable[..., Path]) -> Make:
    """Create a data module with 100 SST-2 rows, 70 of them with label 0."""

    def build(task: str = "sst2", model_type: str = "bert", train: int = 100, **settings: object) -> GLUEDataModule:
        settings = {"max_length": 32, "calibration_size": 50, **settings}
        folder = glue_folder(task, train=train)
        return GLUEDataModule(task, str(tiny_model_folder(model_type)), str(folder), **settings)

    return build


def read_labels(loader: torch.utils.data.DataLoader) -> list[int]:
    return [int(label) for batch in loader for label in batch["labels"]]


def read_inputs(loader: torch.utils.data.DataLoader) -> list[list[list[int]]]:
    return [batch["input_ids"].tolist() for batch in loader]


def test_a_batch_is_a_dict_padded_to_its_own_longest_row(make: Make) -> None:
    module = make(eval_batch_size=4)
    rows = module.split("validation")
    widths = []
    for number, batch in enumerate(module.val_dataloader()):
        assert type(batch) is dict
        assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
        own = rows[4 * number : 4 * number + 4]
        lengths = [len(ids) for ids in own["input_ids"]]
        assert batch["input_ids"].shape == (4, max(lengths))
        assert batch["attention_mask"].sum(1).tolist() == lengths
        assert batch["input_ids"][batch["attention_mask"] == 0].tolist() == [0] * (4 * max(lengths) - sum(lengths))
        assert batch["labels"].tolist() == own["labels"]
        assert batch["labels"].dtype == torch.int64
        widths.append(max(lengths))
    assert len(set(widths)) > 1


@pytest.mark.parametrize("model_type", ["roberta", "distilbert"])
def test_batches_have_token_types_only_if_the_model_uses_them(make: Make, model_type: str) -> None:
    batch = next(iter(make(model_type=model_type).train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_long_inputs_are_truncated(make: Make) -> None:
    module = make(max_length=6)
    assert max(len(ids) for ids in module.split("train")["input_ids"]) == 6
    assert all(ids[-1] == module.tokenizer.sep_token_id for ids in module.split("train")["input_ids"])


@pytest.mark.parametrize("kind", [GLUEDataModule, TextDataModule])
def test_a_tokenizer_without_padding_is_refused(
    kind: Any, tiny_model_folder: Callable[..., Path], glue_folder: Callable[..., Path], tmp_path: Path
) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tiny_model_folder("bert") / "tokenizer.json"))
    tokenizer.save_pretrained(tmp_path)
    AutoConfig.from_pretrained(tiny_model_folder("bert")).save_pretrained(tmp_path)
    first = ["sst2"] if kind is GLUEDataModule else [str(glue_folder("sst2"))]
    settings = {"data_dir": str(glue_folder("sst2"))} if kind is GLUEDataModule else {}
    with pytest.raises(MisconfigurationException, match=r"model_name_or_path=.*no token for padding.*pad_token"):
        kind(*first, str(tmp_path), **settings).setup("fit")


def test_training_is_shuffled_and_evaluation_is_not(make: Make) -> None:
    module = make(batch_size=30)
    assert isinstance(module.train_dataloader().sampler, RandomSampler)
    assert isinstance(module.val_dataloader().sampler, SequentialSampler)
    assert [len(batch["labels"]) for batch in module.train_dataloader()] == [30, 30, 30, 10]
    assert read_labels(module.val_dataloader()) == module.split("validation")["labels"][:]


def test_calibration_is_stratified_and_includes_the_incomplete_last_batch(make: Make) -> None:
    loader = make(calibration_batch_size=16).calibration_dataloader()
    assert [len(batch["labels"]) for batch in loader] == [16, 16, 16, 2]
    assert read_labels(loader).count(0) == 35


def read_widths(loader: torch.utils.data.DataLoader) -> list[int]:
    return [batch["input_ids"].shape[1] for batch in loader]


def count_padding(loader: torch.utils.data.DataLoader) -> int:
    """Return the number of padding tokens."""
    return sum(int((batch["attention_mask"] == 0).sum()) for batch in loader)


def test_calibration_batches_have_similar_lengths_and_random_order(make: Make) -> None:
    module = make(train=1000, calibration_size=320)
    grouped = module.calibration_dataloader()
    chosen = module.split("train").select(calibration_rows(np.repeat(0, 1000), 1000, 320, 0))
    assert count_padding(grouped) < 0.2 * count_padding(DataLoader(chosen, batch_size=32, collate_fn=module._collate))
    widths = read_widths(grouped)
    assert len(widths) == 10
    assert widths not in (sorted(widths), sorted(widths, reverse=True))
    # The length ranges of batches do not overlap.
    lengths = sorted((sorted(batch["attention_mask"].sum(1).tolist()) for batch in grouped), key=lambda one: one[-1])
    assert all(left[-1] <= right[0] for left, right in pairwise(sorted(lengths, key=sum)))


def test_the_calibration_shards_of_two_processes_have_similar_sizes(make: Make) -> None:
    loader = make(train=2100, calibration_size=2048).calibration_dataloader()
    sizes = [sum(batch["input_ids"].numel() for batch in shard_batches(loader, rank, 2)) for rank in (0, 1)]
    assert max(sizes) < 1.1 * min(sizes)


def test_training_batches_can_be_grouped_by_length(make: Make) -> None:
    plain, module = make(train=1000), make(train=1000, group_by_length=True)
    loader = module.train_dataloader()
    assert count_padding(loader) < 0.35 * count_padding(plain.train_dataloader())
    rows = [row for batch in read_unpadded_inputs(loader) for row in batch]
    assert sorted(rows) == sorted(module.split("train")["input_ids"])
    first = read_inputs(loader)
    assert read_inputs(make(train=1000, group_by_length=True).train_dataloader()) == first
    loader.sampler.set_epoch(1)
    assert read_inputs(loader) != first


def read_unpadded_inputs(loader: torch.utils.data.DataLoader) -> list[list[list[int]]]:
    """Return the rows of each batch without padding."""
    return [
        [
            row[: sum(mask)]
            for row, mask in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True)
        ]
        for batch in loader
    ]


def test_a_trainer_keeps_the_sampler_and_regroups_every_epoch(make: Make, tiny_model_folder: Any) -> None:
    class Record(L.Callback):
        def __init__(self) -> None:
            self.epochs: list[list[int]] = []

        def on_train_epoch_start(self, *_: Any) -> None:
            self.epochs.append([])

        def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, *_: Any) -> None:
            self.epochs[-1].append(batch["input_ids"].shape[1])

    record, module = Record(), make(train=320, group_by_length=True)
    trainer = quiet_trainer(max_epochs=2, callbacks=[record], limit_val_batches=0)
    trainer.fit(TextClassification(str(tiny_model_folder("bert")), task="sst2"), module)
    assert isinstance(trainer.train_dataloader.sampler, LengthGroupedSampler)
    assert len(record.epochs[0]) == len(record.epochs[1]) == 10
    assert record.epochs[0] != record.epochs[1]


def test_calibration_rows_are_reproducible(make: Make) -> None:
    module = make()
    first = read_inputs(module.calibration_dataloader())
    assert read_inputs(module.calibration_dataloader()) == first
    assert read_inputs(make().calibration_dataloader()) == first
    assert read_inputs(make(seed=7).calibration_dataloader()) != first


def test_calibration_does_not_change_the_training_order(make: Make) -> None:
    module = make()
    torch.manual_seed(0)
    before = read_labels(module.train_dataloader())
    torch.manual_seed(0)
    list(module.calibration_dataloader())
    torch.manual_seed(0)
    assert read_labels(module.train_dataloader()) == before


def test_fewer_rows_than_the_default_give_a_warning(make: Make) -> None:
    with pytest.warns(UserWarning, match="100 training rows.*2048"):
        loader = make(calibration_size=None).calibration_dataloader()
    assert len(read_labels(loader)) == 100


def test_enough_rows_give_no_warning(make: Make) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Calibrating")
        loader = make(calibration_size=None, train=2100).calibration_dataloader()
    assert len(read_labels(loader)) == 2048


def test_fewer_rows_than_calibration_size_are_an_error(make: Make) -> None:
    with pytest.raises(MisconfigurationException, match=r"calibration_size=101.*100"):
        make(calibration_size=101).calibration_dataloader()


def test_max_train_samples_limits_training_and_calibration(make: Make) -> None:
    module = make(max_train_samples=40, calibration_size=None)
    assert len(module.split("train")) == 40
    assert len(module.split("validation")) == 40
    with pytest.warns(UserWarning, match="40 training rows"):
        assert len(read_labels(module.calibration_dataloader())) == 40
    assert module.split("train")["input_ids"][:] == make(max_train_samples=40).split("train")["input_ids"][:]


def test_tokenized_rows_come_from_the_cache(make: Make) -> None:
    first = make(max_length=20)
    first.prepare_data()
    assert first._splits == {}
    first.setup("fit")
    (cached,) = {entry["filename"] for entry in first.split("train").cache_files}
    written = Path(cached).stat().st_mtime_ns
    second = make(max_length=20)
    second.setup("fit")
    assert {entry["filename"] for entry in second.split("train").cache_files} == {cached}
    assert Path(cached).stat().st_mtime_ns == written
    used = make(max_length=20)
    used.tokenizer(["a film"] * 2, truncation=True, padding=True, max_length=7)  # changes the state of the tokenizer
    assert {entry["filename"] for entry in used.split("train").cache_files} == {cached}
    other = make(max_length=21).split("train")
    assert {entry["filename"] for entry in other.cache_files} != {cached}


def test_setup_loads_only_the_splits_of_the_stage(make: Make) -> None:
    module = make()
    module.setup("validate")
    assert set(module._splits) == {"validation"}
    module.setup("fit")
    assert set(module._splits) == {"train", "validation"}


@pytest.mark.parametrize(
    "name",
    [
        "max_length",
        "batch_size",
        "eval_batch_size",
        "calibration_size",
        "calibration_batch_size",
        "max_train_samples",
    ],
)
def test_sizes_below_one_are_rejected(make: Make, name: str) -> None:
    with pytest.raises(MisconfigurationException, match=f"{name}=0"):
        make(**{name: 0})


def test_a_negative_number_of_workers_is_rejected(make: Make) -> None:
    with pytest.raises(MisconfigurationException, match="num_workers=-1"):
        make(num_workers=-1)


def test_a_length_beyond_the_model_is_rejected(make: Make) -> None:
    with pytest.raises(MisconfigurationException, match=r"max_length=65 .*3 to 64"):
        make(max_length=65).setup("fit")


def test_worker_processes_return_the_same_batches(make: Make) -> None:
    with_worker = read_inputs(make(num_workers=1).calibration_dataloader())
    assert with_worker == read_inputs(make().calibration_dataloader())


def test_regression_rows_are_drawn_without_stratification(make: Make) -> None:
    scores = [float(label) for batch in make(task="stsb").calibration_dataloader() for label in batch["labels"]]
    assert len(scores) == 50
    assert any(left > right for left, right in pairwise(scores))
