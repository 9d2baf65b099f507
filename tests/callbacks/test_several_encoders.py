"""Several encoders in one module: one PGBCallback for each, in one fit or in turn."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.own import OwnModule, make_loader, shapes
from helpers.processes import run
from helpers.several import PASSAGE, QUERY, BiEncoder, embeddings
from helpers.tiny import classifier
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from pgb_lightning import PruningPlan
from pgb_lightning.callbacks import Distillation, PGBCallback, PGBReport
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.report.command import run_report
from pgb_lightning.surgery.checks import is_pruned, matches

MakeTrainer = Callable[..., L.Trainer]


def pair(query: float = 0.5, passage: float = 0.7, **settings: Any) -> tuple[PGBCallback, PGBCallback]:
    return PGBCallback(query, encoder="query", **settings), PGBCallback(passage, encoder=PASSAGE, **settings)


def pruned_parts(module: BiEncoder) -> tuple[bool, bool]:
    return is_pruned(find_encoder(module, QUERY)), is_pruned(find_encoder(module, PASSAGE))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BiEncoder, tuple[PGBCallback, PGBCallback]]:
    """Prune both encoders in one fit. Read only."""
    folder = tmp_path_factory.mktemp("both")
    module, callbacks = BiEncoder(), pair()
    reports = [PGBReport(encoder=each.encoder, latency=False) for each in callbacks]
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=CSVLogger(str(folder), name="", version="run"),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, *reports, ModelCheckpoint(folder, "end")],
    )
    trainer.fit(module, make_loader(), make_loader(16))
    return folder, module, callbacks


def test_each_callback_prunes_its_encoder(fitted: tuple[Any, ...]) -> None:
    _, module, (query, passage) = fitted
    assert query.plan.pruning_ratio == pytest.approx(0.5, abs=0.01)
    assert passage.plan.pruning_ratio == pytest.approx(0.7, abs=0.01)
    assert (query.plan.model_type, passage.plan.model_type) == ("bert", "distilbert")
    assert matches(find_encoder(module, QUERY), query.plan)
    assert matches(find_encoder(module, PASSAGE), passage.plan)


def test_states_files_metrics_and_reports_are_kept_apart(fitted: tuple[Any, ...]) -> None:
    folder, _, callbacks = fitted
    states = torch.load(folder / "end.ckpt", weights_only=True)["callbacks"]
    header = (folder / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    for callback in callbacks:
        name = callback.encoder
        assert states[callback.state_key]["plan"] == callback.plan.to_dict()
        assert PruningPlan.load(folder / "run" / f"plan-{name}.json") == callback.plan
        assert f"pgb/{name}/pruning_ratio" in header
        report = json.loads((folder / "run" / f"report-{name}" / "report.json").read_text())
        assert report["pruning_ratio"] == callback.plan.pruning_ratio
        assert name in report["name"]
        page = run_report(str(folder / "end.ckpt"), str(folder / "command" / name), encoder=name)
        assert json.loads((page.parent / "report.json").read_text()) == report
    assert not (folder / "run" / "plan.json").exists()
    assert not (folder / "run" / "report").exists()
    with pytest.raises(MisconfigurationException, match=r"encoder=None.*encoder=query.*encoder=passage\.distilbert"):
        run_report(str(folder / "end.ckpt"), str(folder / "none"))


def test_the_checkpoint_loads_resumes_and_is_tested(fitted: tuple[Any, ...], trainer: MakeTrainer) -> None:
    folder, module, callbacks = fitted
    path, expected = folder / "end.ckpt", embeddings(module)
    assert torch.equal(embeddings(BiEncoder.load_from_checkpoint(path)), expected)
    other = BiEncoder(seed=3)
    trainer(*pair()).validate(other, make_loader(16), ckpt_path=path, verbose=False)
    assert torch.equal(embeddings(other), expected)
    resumed, again = BiEncoder(seed=4), pair()
    trainer(*again, max_epochs=2).fit(resumed, make_loader(), ckpt_path=path)
    assert [each.plan for each in again] == [each.plan for each in callbacks]
    assert shapes(resumed) == shapes(module)


def test_a_second_fit_of_the_same_callbacks_continues(trainer: MakeTrainer) -> None:
    module, callbacks = BiEncoder(), pair()
    trainer(*callbacks).fit(module, make_loader())
    plans, before = [each.plan for each in callbacks], shapes(module)
    trainer(*callbacks).fit(module, make_loader())
    assert [each.plan for each in callbacks] == plans
    assert shapes(module) == before


def test_one_encoder_after_the_other(trainer: MakeTrainer, tmp_path: Path) -> None:
    module, (query, passage) = BiEncoder(), pair()
    trainer(query, ModelCheckpoint(tmp_path, "first"), enable_checkpointing=True).fit(module, make_loader())
    assert pruned_parts(module) == (True, False)
    assert PruningPlan.load(tmp_path / "plan.json") == query.plan
    structure = shapes(module.query)
    trainer(passage, ModelCheckpoint(tmp_path, "second"), enable_checkpointing=True).fit(module, make_loader())
    assert pruned_parts(module) == (True, True)
    assert shapes(module.query) == structure

    first, second = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    assert pruned_parts(BiEncoder.load_from_checkpoint(first)) == (True, False)
    assert torch.equal(embeddings(BiEncoder.load_from_checkpoint(second)), embeddings(module))
    for path, callback in ((first, pair()[0]), (second, pair()[1])):
        resumed = BiEncoder(seed=5)
        trainer(callback, max_epochs=2).fit(resumed, make_loader(), ckpt_path=path)
        assert shapes(resumed) == shapes(BiEncoder.load_from_checkpoint(path))
    # The optimizer state in the first checkpoint is that of a dense second encoder.
    with pytest.raises(MisconfigurationException, match=r"'passage\.distilbert' is dense in ckpt_path"):
        trainer(*pair(), max_epochs=2).fit(BiEncoder(), make_loader(), ckpt_path=first)
    # Its weights can be loaded, and both callbacks used: the first encoder stays, as it is pruned as asked.
    loaded = BiEncoder.load_from_checkpoint(first)
    trainer(pair()[1]).fit(loaded, make_loader())
    assert pruned_parts(loaded) == (True, True)


def test_evaluating_a_module_with_one_dense_encoder_is_a_warning(trainer: MakeTrainer) -> None:
    module = BiEncoder()
    trainer(pair()[0]).fit(module, make_loader())
    with pytest.warns(UserWarning, match=r"encoder='passage\.distilbert'"):
        trainer(*pair()).validate(module, make_loader(16), verbose=False)
    trainer(PGBCallback(encoder="other")).validate(module, make_loader(16), verbose=False)


def test_weights_only_checkpoints(trainer: MakeTrainer, tmp_path: Path) -> None:
    module, saver = BiEncoder(), ModelCheckpoint(tmp_path, "weights", save_weights_only=True)
    trainer(*pair(), saver, enable_checkpointing=True).fit(module, make_loader())
    assert torch.equal(embeddings(BiEncoder.load_from_checkpoint(tmp_path / "weights.ckpt")), embeddings(module))


def test_given_plans(fitted: tuple[Any, ...], trainer: MakeTrainer) -> None:
    folder, first, callbacks = fitted
    given = [PGBCallback(plan=folder / "run" / f"plan-{each.encoder}.json", encoder=each.encoder) for each in callbacks]
    module = BiEncoder()
    trainer(*given).fit(module, make_loader())
    assert shapes(module) == shapes(first)
    wrong = PGBCallback(plan=folder / "run" / "plan-query.json", encoder=PASSAGE)
    with pytest.raises(MisconfigurationException, match=r"model_type='bert'.*'distilbert'"):
        trainer(wrong).fit(BiEncoder(), make_loader())


def test_a_frozen_dense_teacher_stays_dense(trainer: MakeTrainer, tmp_path: Path) -> None:
    class Taught(BiEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = classifier("roberta", layers=1).requires_grad_(False).eval()

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            with torch.no_grad():
                target = self.teacher(input_ids=batch[0]).logits.softmax(-1)
            return super().training_step(batch, batch_idx) + target.square().mean()

    module = Taught()
    trainer(*pair(), ModelCheckpoint(tmp_path, "end"), enable_checkpointing=True).fit(module, make_loader())
    loaded = Taught.load_from_checkpoint(tmp_path / "end.ckpt")
    assert pruned_parts(loaded) == (True, True)
    assert not is_pruned(find_encoder(loaded, "teacher"))
    assert torch.equal(embeddings(loaded), embeddings(module))


@pytest.mark.slow
def test_target_speedups(trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    size = {"latency_batch_size": 1, "latency_length": 16}
    callbacks = [PGBCallback(encoder=name, target_speedup=1.5, **size) for name in ("query", PASSAGE)]
    logger = CSVLogger(tmp_path)
    module = BiEncoder()
    trainer(*callbacks, logger=logger).fit(module, make_loader())
    header = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"pgb/query/speedup", f"pgb/{PASSAGE}/speedup"} <= set(header)
    assert all(each.plan is not None for each in callbacks)


class Late(BiEncoder):
    """Builds its encoders in ``configure_model``."""

    def __init__(self) -> None:
        super().__init__()
        self.built = [self.query, self.passage]
        del self.query, self.passage

    def configure_model(self) -> None:
        self.query, self.passage = self.built


@pytest.mark.parametrize("kind", [BiEncoder, Late])
def test_two_callbacks_for_one_encoder_are_refused(kind: type[BiEncoder], trainer: MakeTrainer) -> None:
    module = kind()
    module.alias = module.built[0] if isinstance(module, Late) else module.query
    for name in ("query.bert", "alias"):
        with pytest.raises(MisconfigurationException, match=rf"encoder='query' and encoder='{name}'"):
            trainer(PGBCallback(encoder="query"), PGBCallback(encoder=name)).fit(module, make_loader())
    assert not is_pruned(find_encoder(module, "alias"))
    trainer(PGBCallback(encoder="alias"), pair()[1]).fit(module, make_loader())
    assert pruned_parts(module) == (True, True)


def test_two_callbacks_without_an_encoder_are_refused(trainer: MakeTrainer) -> None:
    with pytest.raises(RuntimeError, match="PGBCallback"):
        trainer(PGBCallback(), PGBCallback(0.3))
    later = trainer(PGBCallback(encoder="query"))
    later.callbacks.append(PGBCallback())  # type: ignore[attr-defined]
    with pytest.raises(MisconfigurationException, match=r"holds 2 encoders.*encoder="):
        later.fit(BiEncoder(), make_loader())


def test_a_module_may_copy_its_encoder_after_the_pruning(trainer: MakeTrainer) -> None:
    class Averaged(OwnModule):
        def on_fit_start(self) -> None:
            self.average = copy.deepcopy(self.net).requires_grad_(False)

    module = Averaged()
    trainer(PGBCallback(0.5)).fit(module, make_loader())
    assert all(is_pruned(find_encoder(model)) for model in (module.net, module.average))


def test_distillation_needs_to_know_its_encoder(trainer: MakeTrainer) -> None:
    with pytest.raises(MisconfigurationException, match=r"Distillation: .*holds 2 encoders.*'passage\.distilbert'\.$"):
        trainer(*pair(), Distillation()).fit(BiEncoder(), make_loader())


def test_a_report_needs_to_know_its_encoder(trainer: MakeTrainer) -> None:
    with pytest.raises(MisconfigurationException, match=r"PGBReport: encoder=None.*PGBReport\(encoder='query'\)"):
        trainer(*pair(), PGBReport()).fit(BiEncoder(), make_loader())
    with pytest.raises(MisconfigurationException, match=r"encoder='passage'.*encoder='passage\.distilbert'"):
        trainer(*pair(), PGBReport(encoder="passage")).fit(BiEncoder(), make_loader())
    reports = PGBReport(encoder="query", output_dir="out"), PGBReport(encoder=PASSAGE, output_dir="out")
    with pytest.raises(MisconfigurationException, match="output_dir='out'"):
        trainer(*pair(), *reports).fit(BiEncoder(), make_loader())
    with pytest.raises(MisconfigurationException, match="encoder='query' and encoder=None"):
        trainer(pair()[0], PGBReport(encoder="query"), PGBReport()).fit(BiEncoder(), make_loader())


def test_a_checkpoint_whose_plan_has_another_key_restores_the_plan(trainer: MakeTrainer, tmp_path: Path) -> None:
    """Release 0.1.0 stored every plan under ``"PGBCallback"``."""
    first = PGBCallback(encoder="query")
    module = BiEncoder()
    trainer(first, ModelCheckpoint(tmp_path, "end"), enable_checkpointing=True).fit(module, make_loader())
    checkpoint = torch.load(tmp_path / "end.ckpt", weights_only=True)
    checkpoint["callbacks"]["PGBCallback"] = checkpoint["callbacks"].pop(first.state_key)
    torch.save(checkpoint, tmp_path / "old.ckpt")
    for path, name in (("old.ckpt", "query"), ("end.ckpt", QUERY)):
        resumed = PGBCallback(encoder=name)
        trainer(resumed, max_epochs=2).fit(BiEncoder(), make_loader(), ckpt_path=tmp_path / path)
        assert resumed.plan == first.plan


def test_messages_name_the_encoder(trainer: MakeTrainer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        trainer(*pair()).fit(BiEncoder(), make_loader())
    assert "weights of 'query' (target 50.00%)" in caplog.text
    assert f"weights of '{PASSAGE}' (target 70.00%)" in caplog.text


@pytest.mark.slow
def test_two_processes_and_forked_processes(tmp_path: Path) -> None:
    run("programs/several_fit.py", tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert first["plans"] == second["plans"]
    assert all(torch.equal(second["state"][name], value) for name, value in first["state"].items())
    for strategy in ("ddp", "ddp_fork"):
        names = {path.name for path in (tmp_path / strategy).iterdir()}
        assert {"plan-query.json", f"plan-{PASSAGE}.json"} <= names
        assert pruned_parts(BiEncoder.load_from_checkpoint(tmp_path / strategy / "end.ckpt")) == (True, True)
    forked = torch.load(tmp_path / "forked.pt", weights_only=True)
    assert torch.equal(forked, embeddings(BiEncoder.load_from_checkpoint(tmp_path / "ddp_fork" / "end.ckpt")))


def test_a_failed_calibration_names_the_encoder(trainer: MakeTrainer) -> None:
    class Unused(BiEncoder):
        def forward(self, tokens: Tensor) -> Tensor:
            return self.query(input_ids=tokens).logits  # type: ignore[no-any-return]

    module = Unused()
    with pytest.raises(MisconfigurationException, match=r"PGBCallback: encoder='passage\.distilbert': "):
        trainer(*pair()).fit(module, make_loader())
    assert pruned_parts(module) == (True, False)
