"""Detectron2's training loop, preceded by style mining, with randomness that depends only on seed and iteration."""

import logging
import math
import os
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer
from detectron2.engine.hooks import LRScheduler as LRSchedulerHook
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn

from famix.clip.adapter_files import with_base
from famix.data import build_test_loader, build_train_loader
from famix.data.sampling.class_weights import with_class_weights
from famix.engine.hooks import IterationSeed, KeepingCheckpointer, StopOnSignal, StyleMiningHook, TrainingProgress
from famix.engine.model_selection import ModelSelection
from famix.engine.optimization import build_lr_scheduler, build_optimizer, set_position, transfer_state
from famix.engine.resuming import require_resumable, run_record
from famix.engine.setup import clear_run_directory, keep_settings
from famix.engine.step_trainer import build_step_trainer
from famix.evaluation import ProtocolInference, build_evaluator, protocol_of
from famix.io.checkpointer import LAST_FILE, SafeCheckpointer
from famix.mining import obtain_style_bank
from famix.modeling import PatchStyleMixin
from famix.modeling.compiling import compile_layers
from famix.reports import (
    ScoredWeights,
    describe_classes,
    format_classes,
    format_corruptions,
    format_row,
    format_scores,
    make_report,
    write_report,
)
from famix.reports.trackers import PredictionImages, build_trackers
from famix.utils.errors import FAMixError, TrainingError
from famix.utils.progress import ShownLoader

Scores = dict[str, dict[str, float]]  # task -> metric -> percent
Results = dict[str, Scores]  # dataset -> scores


class Trainer(DefaultTrainer):
    """DefaultTrainer with the models, loaders, schedule, hooks and evaluators of FAMix, for a config from `setup`."""

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer.__init__ wraps models for CUDA only and opens any pickle as a checkpoint.
        TrainerBase.__init__(self)
        self._settings = cfg  # for config.yaml, not scaled to the number of processes
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = cfg
        self._plain_model: Any = self.build_model(with_class_weights(cfg))
        compile_layers(self._plain_model, cfg.MODEL.COMPILE)
        optimizer = self.build_optimizer(cfg, self._plain_model)
        placement = {} if next(self._plain_model.parameters()).is_cuda else {"device_ids": None}
        model = create_ddp_model(self._plain_model, broadcast_buffers=False, **placement)
        self._trainer = build_step_trainer(cfg, model, self.build_train_loader(cfg), optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        record = run_record(cfg)
        self.checkpointer = SafeCheckpointer(
            model, cfg.OUTPUT_DIR, record=record, complete=partial(with_base, cfg=cfg), trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self._stepping = False
        self._mining: StyleMiningHook | None = None
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase]:
        """Build the hooks for styles and seeds, then Detectron2's default hooks and those for model selection."""
        solver, model = self.cfg.SOLVER, self._plain_model
        saving = KeepingCheckpointer(self.checkpointer, solver.CHECKPOINT_PERIOD, solver.CHECKPOINTS_KEPT)
        self._selection = ModelSelection(self.cfg, model, self._score_source, self.checkpointer.record)
        validation = [self._selection.validation] if self._selection.validation else []
        hooks: list[HookBase] = []
        restyler = model.restyler if isinstance(model, PatchStyleMixin) else None
        if restyler is not None and restyler.needs("bank"):
            self._mining = StyleMiningHook(obtain=partial(obtain_style_bank, self.cfg), use=restyler.use_bank)
            hooks.append(self._mining)
        hooks.append(IterationSeed(self.cfg.SEED, restyler.reseed if restyler is not None else lambda seed: None))
        if self._selection.average:
            hooks.append(self._selection.average)
        for hook in super().build_hooks():
            if isinstance(hook, EvalHook):
                hooks += [*validation, StopOnSignal(), EvalHook(self.cfg.TEST.EVAL_PERIOD, self._score_targets)]
                hooks.append(PredictionImages(self.cfg, model))
            else:
                hooks.append(saving if isinstance(hook, PeriodicCheckpointer) else hook)
        return [*hooks, TrainingProgress()]

    def build_writers(self) -> list[EventWriter]:
        """Build the writers for TRACKERS, then Detectron2's, the last of which clears the images."""
        return [*build_trackers(self.cfg), *super().build_writers()]

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint in OUTPUT_DIR, or start from MODEL.WEIGHTS (see DefaultTrainer)."""
        super().resume_or_load(resume)
        if self.start_iter:
            self._trainer.reset_data_loader(partial(build_train_loader, self.cfg, self.start_iter))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state in a checkpoint, but read learning rates, momentum and weight decay from the config.

        Raises:
            ConfigError: the config changes a setting that must not change.
            WeightsError: the state belongs to a different model or optimizer.
        """
        stored = require_resumable(self.checkpointer.loaded, self.cfg, self.checkpointer.resumed) or self.cfg
        inner = dict(state_dict["_trainer"])
        saved = self.build_optimizer(stored, self._plain_model)
        inner["optimizer"] = transfer_state(inner["optimizer"], saved, self.optimizer)
        # The config determines the schedule, and the iteration determines the position in it.
        states = {
            name: state for name, state in state_dict.get("hooks", {}).items() if name != LRSchedulerHook.__name__
        }
        super().load_state_dict({**state_dict, "hooks": states, "_trainer": inner})
        set_position(self.scheduler, min(self.iter + 1, self.max_iter))

    def train(self, *, overwrite: bool = False) -> Results:
        """Train the model. On an unusable sample, save a checkpoint of the finished iterations and stop.

        Args:
            overwrite: whether to remove the run in OUTPUT_DIR as soon as the new one is ready for its first iteration.

        Returns:
            The results of the last evaluation on DATASETS.TEST (see `test`).
        """
        if self._mining is not None:
            self._mining.before_train()  # before the loop: a bad bank fails before a finished run is evaluated
        if overwrite:
            clear_run_directory(self.cfg.OUTPUT_DIR)
            keep_settings(self._settings)
        resumed = os.path.basename(self.checkpointer.resumed)
        if resumed and resumed != LAST_FILE and self.start_iter >= self.max_iter:
            # The run was killed before its final checkpoint, or that file is damaged.
            self.checkpointer.save(LAST_FILE.removesuffix(".pth"), iteration=self.iter)
        try:
            super().train()
        except TrainingError as error:  # not saved: the weights may have diverged
            if not self.checkpointer.resumed or self.iter > self.start_iter:
                raise
            raise TrainingError(
                f"{error} This is the first iteration after '{self.checkpointer.resumed}'. If it always fails, remove "
                "that checkpoint; --resume then continues from the previous one."
            ) from error
        except FAMixError:
            if self._stepping and self.iter > self.start_iter and comm.is_main_process():
                self.iter -= 1  # the failed step has not changed the model
                self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
            raise
        return self._last_eval_results

    def run_step(self) -> None:
        """Run one iteration and record whether it fails."""
        self._stepping = True
        super().run_step()
        self._stepping = False

    build_optimizer = staticmethod(build_optimizer)
    build_lr_scheduler = staticmethod(build_lr_scheduler)
    build_train_loader = staticmethod(build_train_loader)
    build_test_loader = staticmethod(build_test_loader)
    build_evaluator = staticmethod(build_evaluator)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: Sequence[DatasetEvaluator] | None = None,
        weights: ScoredWeights | None = None,
    ) -> Results:
        """Evaluate a model on every dataset in DATASETS.TEST, log tables and write results.json, .csv and .md.

        Args:
            cfg: the effective config; the files are written to its OUTPUT_DIR.
            model: model to evaluate.
            evaluators: one evaluator per dataset. If None, they are built from the config.
            weights: description of the weights, stored in the files.

        Returns:
            Percentages by dataset, task and metric on the main process, and an empty dict on the others or without datasets.
        """
        names = cfg.DATASETS.TEST
        if not names:
            return {}
        given = evaluators or [None] * len(names)
        results = {name: cls.score(cfg, model, name, one) for name, one in zip(names, given, strict=True)}
        if not comm.is_main_process():
            return {}
        report = make_report(cfg, results, weights or ScoredWeights())
        logger = logging.getLogger(__name__)
        logger.info("IoU in percent:\n%s", format_classes(report, digits=2))
        logger.info("Results in one row, in percent (%s):\n%s", describe_classes(report), format_row(report))
        logger.info("Results in percent:\n%s", format_scores(report, digits=2))
        if corruptions := format_corruptions(report, digits=2):
            logger.info("Corruptions, %s in percent:\n%s", report.headlines[0], corruptions)
        write_report(report, cfg.OUTPUT_DIR)
        return results

    @classmethod
    def score(
        cls, cfg: CfgNode, model: nn.Module, dataset_name: str, evaluator: DatasetEvaluator | None = None
    ) -> Scores:
        """Evaluate a model on a registered dataset with the protocol that the config sets for it.

        Returns:
            Percentages by task and metric on the main process, and an empty dict on the others.
        """
        if comm.get_world_size() > 1:  # all processes use the batch norm statistics that a checkpoint stores
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)
        inference = ProtocolInference(model, protocol_of(cfg, dataset_name), cfg.TEST.WINDOW_BATCH)
        evaluator = evaluator or cls.build_evaluator(cfg, dataset_name)
        loader = ShownLoader(cls.build_test_loader(cfg, dataset_name), f"scoring {dataset_name}")
        return inference_on_dataset(inference, loader, evaluator)

    def _score_targets(self) -> Results:
        """Evaluate DATASETS.TEST with the current weights or, after the last iteration, with the selected ones."""
        if self.iter < self.max_iter:
            self._last_eval_results = self.test(self.cfg, self.model, weights=ScoredWeights(iterations=self.iter + 1))
        else:
            done = max(self.max_iter, self.start_iter)  # self.iter is one higher if no iteration was left
            with self._selection.selected(done) as weights:
                self._last_eval_results = self.test(self.cfg, self.model, weights=weights)
        return self._last_eval_results

    def _score_source(self, dataset_name: str) -> float:
        """Return the mIoU of the current weights on the main process, and NaN on the others."""
        return self.score(self.cfg, self.model, dataset_name).get("sem_seg", {}).get("mIoU", math.nan)
