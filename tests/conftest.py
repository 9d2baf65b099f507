"""Fixtures shared by all tests: tiny random models and artificial data, without network access."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import pytest
import torch
from filelock import FileLock
from helpers.fakes import VOCABULARY, glue_rows, quiet_trainer, squad_folder
from helpers.families import TINY
from helpers.processes import end_distributed, run
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, BertTokenizer

from pgb_lightning import PruningConfig, PruningPlan, prune
from pgb_lightning.glue_tasks import get_task
from pgb_lightning.modules import QuestionAnswering, TextClassification, TokenClassification
from pgb_lightning.modules.finetuning import FineTuning
from pgb_lightning.packaged import read_tokenizer

#: Folders and files of slow tests: complete runs, and measurements.
SLOW = (
    "callbacks/pruning/test_compatibility.py",
    "callbacks/test_best_checkpoint.py",
    "callbacks/test_distillation_callback.py",
    "callbacks/test_entries.py",
    "callbacks/test_report.py",
    "callbacks/test_target_speedup.py",
    "cli/test_commands.py",
    "cli/test_prune_command.py",
    "cli/test_prune_refusals.py",
    "experiments/",
    "test_tutorial.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what ``make test-fast`` leaves out: complete runs, and all families but BERT and ratios but 0.5.

    Single tests that start processes or take over a second have the marker where they are defined.
    """
    for item in items:
        path = item.path.relative_to(Path(__file__).parent).as_posix()
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        usual = parameters.get("model_type", "bert") == "bert" and parameters.get("ratio", 0.5) == 0.5
        if path.startswith(SLOW) or not usual:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def private_dataset_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Use a temporary cache for ``datasets``, and disable its progress bars."""
    cache = tmp_path_factory.mktemp("datasets-cache")
    original = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = cache
    os.environ["HF_DATASETS_CACHE"] = str(cache)  # for processes that tests start
    datasets.disable_progress_bars()
    yield cache
    datasets.config.HF_DATASETS_CACHE = original


@pytest.fixture(autouse=True)
def propagate_lightning_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Propagate Lightning's log messages to ``caplog``. Lightning disables this if no handler exists at its import."""
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)


@pytest.fixture(autouse=True)
def no_process_group() -> Iterator[None]:
    """End what a fit with ``ddp`` in this process leaves behind, such as the port that later processes would use."""
    yield
    end_distributed()


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that creates, once per session, a folder with a tiny random encoder and its tokenizer.

    For example ``tiny_model_folder("bert")``. The model types are those of ``TINY``. Keyword arguments change
    the model's configuration.
    """
    folders: dict[str, Path] = {}

    def make(model_type: str = "bert", **changes: Any) -> Path:
        key = f"{model_type}-{sorted(changes.items())}"
        if key not in folders:
            folder = tmp_path_factory.mktemp(f"tiny-{model_type}")
            settings = {
                "vocab_size": len(VOCABULARY),
                "pad_token_id": 0,
                **TINY[model_type],
                **changes,
            }
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                AutoModel.from_config(AutoConfig.for_model(model_type, **settings)).save_pretrained(folder)
            names = ["input_ids", *(["token_type_ids"] if model_type == "bert" else []), "attention_mask"]
            BertTokenizer(
                vocab={word: index for index, word in enumerate(VOCABULARY)},
                model_max_length=changes.get("max_position_embeddings", 64),
                model_input_names=names,
            ).save_pretrained(folder)
            folders[key] = folder
        return folders[key]

    return make


@pytest.fixture
def fine_tuned(tiny_model_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    """Return a function that saves a tiny model with a head.

    For example ``fine_tuned(names=("neg", "pos"))``. Keyword arguments change the model's configuration.
    """

    def make(auto: Any = AutoModelForSequenceClassification, names: tuple[str, ...] = (), **config: Any) -> str:
        folder = tmp_path / "model"
        if names:
            config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            auto.from_pretrained(tiny_model_folder("bert"), **config).save_pretrained(folder)
        read_tokenizer(str(tiny_model_folder("bert"))).save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture(scope="session")
def glue_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that creates, once per session, a folder of a GLUE task: ``glue_folder("sst2", train=100)``."""
    folders: dict[tuple[str, int, int], Path] = {}

    def make(name: str = "sst2", train: int = 100, validation: int = 40) -> Path:
        key = (name, train, validation)
        if key not in folders:
            task = get_task(name)
            folder = tmp_path_factory.mktemp(f"glue-{name}")
            glue_rows(task, train, seed=1).to_parquet(folder / "train.parquet")
            for number, split in enumerate(task.validation_splits):
                glue_rows(task, validation, seed=2 + number).to_parquet(folder / f"{split}.parquet")
            folders[key] = folder
        return folders[key]

    return make


@pytest.fixture(scope="session")
def squad_model(tiny_model_folder: Callable[..., Path]) -> str:
    """Return a tiny model that takes sequences of 100 tokens."""
    return str(tiny_model_folder("bert", max_position_embeddings=130))


@pytest.fixture(scope="session")
def squad_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return SQuAD 2.0 data: 21 questions, whose windows two processes cannot share evenly."""
    return squad_folder(tmp_path_factory.mktemp("squad") / "rows", "2.0", validation=21)


@pytest.fixture(scope="session")
def two_processes(
    tmp_path_factory: pytest.TempPathFactory, squad_model: str, squad_rows: Path, glue_folder: Callable[..., Path]
) -> Path:
    """Run ``programs/two_processes.py`` once, also when several pytest workers need it, and return its folder."""
    base = tmp_path_factory.getbasetemp()
    # pytest-xdist gives every worker a subfolder of one folder.
    folder = (base.parent if base.name.startswith("popen-") else base) / "two_processes"
    with FileLock(f"{folder}.lock"):
        if not (folder / "finished").exists():
            assert not folder.exists(), "the program failed in another worker"
            folder.mkdir()
            data = (glue_folder("sst2"), glue_folder("stsb"), squad_rows)
            run("programs/two_processes.py", folder, squad_model, *data)
            (folder / "finished").touch()
    return folder


def save_module(module: FineTuning, path: Path, plan: PruningPlan | None = None, score: float | None = None) -> Path:
    """Save a module as a Trainer does, with the states of a pruning and a checkpoint callback."""
    trainer = quiet_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    states: dict[str, Any] = {"PGBCallback": {"plan": plan.to_dict() if plan else None}}
    if score is not None:
        best = {str(path): torch.tensor(score)}
        states["BestCheckpoint"] = {"monitor": "val_accuracy", "best_k_models": best}
    torch.save({**checkpoint, "callbacks": states}, path)
    return path


@pytest.fixture
def pruned_checkpoint(tiny_model_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that creates a checkpoint of a fit.

    For example ``pruned_checkpoint("classifier")``, ``"reader"`` (question answering), ``"tagger"`` (of tokens),
    ``"labels"`` (several for each text) or ``"dense"``.
    """

    def make(
        what: str = "classifier",
        model_type: str = "bert",
        name: str | None = None,
        preset: str = "balanced",
        **changes: Any,
    ) -> Path:
        folder = str(tiny_model_folder(model_type, **changes))
        tokens = torch.randint(5, len(VOCABULARY), (8, 9), generator=torch.Generator().manual_seed(0))
        batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        module: FineTuning
        if what == "reader":
            module = QuestionAnswering(folder)
            batch |= {"start_positions": tokens[:, 0] % 9, "end_positions": tokens[:, 1] % 9}
        elif what == "tagger":
            module = TokenClassification(folder, num_labels=3)
            batch["labels"] = tokens % 3
        elif what == "labels":
            module = TextClassification(folder, num_labels=3, problem_type="multi_label_classification")
            batch["labels"] = (tokens[:, :3] % 2).float()
        else:
            module = TextClassification(folder, task="sst2")
            batch["labels"] = tokens[:, 0] % 2
        plan = None if what == "dense" else prune(module.model, [batch], PruningConfig.from_preset(preset))
        if name is not None:
            module.hparams["model_name_or_path"] = name
        return save_module(module, tmp_path / f"{what}.ckpt", plan, score=0.875)

    return make
