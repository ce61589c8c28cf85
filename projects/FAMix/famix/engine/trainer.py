"""The training loop: Detectron2's, with style mining before it and all its randomness a function of the seed."""

import logging
import os
import weakref
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from famix.data import build_test_loader, build_train_loader
from famix.engine.checkpointer import SafeCheckpointer
from famix.engine.iteration_seed import IterationSeed
from famix.engine.mixed_precision import build_step_trainer
from famix.engine.optimization import build_lr_scheduler, build_optimizer
from famix.errors import FAMixError
from famix.evaluation import RESULTS_FILE, build_evaluator, format_class_results, format_results, write_results
from famix.mining import StyleMiningHook, obtain_style_bank
from famix.modeling import PatchStyleMixin

__all__ = ["Trainer"]

Results = dict[str, dict[str, dict[str, float]]]  # data set -> task -> metric -> percent


class Trainer(DefaultTrainer):
    """DefaultTrainer with FAMix's models, loaders, schedule, hooks and evaluators.

    Args:
        cfg: the effective config, as `famix.engine.setup` returns it.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer's own __init__ wraps models for CUDA only and opens any pickle as a checkpoint.
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = cfg
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        placement = {} if next(model.parameters()).is_cuda else {"device_ids": None}
        parallel = create_ddp_model(model, broadcast_buffers=False, **placement)
        self._trainer = build_step_trainer(cfg, parallel, self.build_train_loader(cfg), optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SafeCheckpointer(parallel, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self._stepping = False
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's default hooks, behind the style bank and the seeding of every iteration."""
        hooks = super().build_hooks()
        model = getattr(self.model, "module", self.model)
        restyler = model.restyler if isinstance(model, PatchStyleMixin) else None
        reseed = restyler.reseed if restyler is not None else _ignore
        hooks.insert(0, IterationSeed(self.cfg.SEED, reseed))
        if restyler is not None and restyler.needs_bank:
            hooks.insert(0, StyleMiningHook(obtain=partial(obtain_style_bank, self.cfg), use=restyler.use_bank))
        return hooks

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint of OUTPUT_DIR, or start from MODEL.WEIGHTS; see DefaultTrainer."""
        super().resume_or_load(resume)
        if self.start_iter:
            self._trainer.reset_data_loader(partial(build_train_loader, self.cfg, self.start_iter))

    def train(self) -> Results:
        """Train; a bad sample stops the run only after a checkpoint of what was reached.

        Returns:
            The results on DATASETS.TEST of the last evaluation, see `test`.
        """
        for hook in self._hooks:
            if isinstance(hook, StyleMiningHook):
                hook.prepare()  # ahead of the loop, which would evaluate a finished run before it reports a bad bank
        try:
            super().train()
        except FAMixError:
            if self._stepping and self.iter > self.start_iter and comm.is_main_process():
                self.iter -= 1  # the step that failed to get its samples has not touched the model
                self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
            raise
        return self._last_eval_results

    def run_step(self) -> None:
        """One iteration; remembers whether it was finished."""
        self._stepping = True
        super().run_step()
        self._stepping = False

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        """See famix.engine.optimization."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
        """See famix.engine.optimization."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        """See famix.data."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """See famix.data."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """See famix.evaluation."""
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None) -> Results:
        """Evaluate a model on every data set of DATASETS.TEST, log one table and write OUTPUT_DIR/results.json.

        Returns:
            Data set -> task -> metric -> percent, on the main process.
        """
        _share_buffers(model)
        results = super().test(cfg, model, evaluators)
        if len(cfg.DATASETS.TEST) == 1:  # Detectron2 leaves the name of a single data set out
            results = {cfg.DATASETS.TEST[0]: results}
        if comm.is_main_process():
            logger = logging.getLogger(__name__)
            logger.info("IoU in percent:\n%s", format_class_results(results))
            logger.info("Results in percent:\n%s", format_results(results))
            write_results(results, os.path.join(cfg.OUTPUT_DIR, RESULTS_FILE))
        return results


def _share_buffers(model: nn.Module) -> None:
    """Give every process the main one's batch norm statistics: what is scored is what its checkpoint holds."""
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def _ignore(seed: int) -> None:
    """A model without styles has nothing to seed."""
