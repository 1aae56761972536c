"""mmengine's Runner with resumable state, seeded data and any number of ranks on any device."""

import copy
import inspect
import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import barrier, broadcast, get_rank, get_world_size, is_main_process
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import DataLoader

import cae_seg.engine.file_backend
import cae_seg.engine.hooks.runtime_info  # noqa: F401  (registers it)
from cae_seg.data.sampling import IterationSampler, SeededDataset
from cae_seg.engine.build import seed_all
from cae_seg.engine.compilation import compile_parts, compiles
from cae_seg.engine.hooks.metrics import MetricsHook
from cae_seg.engine.hooks.system_metrics import SystemMetricsHook
from cae_seg.engine.loops import ExactTestLoop, ExactTrainLoop, ExactValLoop
from cae_seg.engine.precision import allow_tf32, wrap_optimizer
from cae_seg.engine.session import Session, TrainingSession
from cae_seg.engine.state import hub_state, is_plain, restore_hub, to_plain
from cae_seg.engine.workers import configure_workers
from cae_seg.engine.wrappers import MicroBatchDDP, OrderedAverage, ddp_options
from cae_seg.errors import UserError
from cae_seg.run.checkpoints import load_state, to_cpu

_number = itertools.count()
# Settings of CheckpointHook that resumable states do not cover; without them it is not run.
_CHECKPOINT_HOOK_KEYS = frozenset(
    {"save_best", "max_keep_ckpts", "published_keys", "out_dir", "save_begin", "filename_tmpl"}
)
_LOG_FOLDER = "mmengine"


@RUNNERS.register_module()
class ExactRunner(Runner):
    """A Runner that continues bit for bit after any interruption.

    Args:
        session: what the command and the machine decide.
        kwargs: as `Runner`.
    """

    def __init__(self, session: Session, **kwargs: Any) -> None:
        self.session = session
        self.resumed: dict[str, Any] = {}
        self.evaluated: set[int] = set()  # iterations whose evaluation need not be repeated
        self.data_seconds = 0.0  # time that the last iteration waited for its batch
        super().__init__(**kwargs)

    @classmethod
    def of(cls, config: Config, session: Session, model: nn.Module, folder: Path) -> "ExactRunner":
        """Build the runner of a config around a model.

        Args:
            config: job applied, accelerated.
            session: what the command and the machine decide.
            model: built from the config.
            folder: where mmengine and the hooks write.
        """
        config = copy.deepcopy(config)
        config.work_dir = str(folder)
        config.launcher = "pytorch" if get_world_size() > 1 else "none"
        config.randomness = {"seed": session.seed}
        config.resume = False
        names = set(inspect.signature(Runner.__init__).parameters) - {"cfg", "data_preprocessor"}
        arguments = {name: config[name] for name in names if name in config}
        return cls(session, **arguments | {"model": model, "cfg": config})

    # Environment

    def setup_env(self, env_cfg: dict) -> None:
        """Set up processes; all attempts log to one folder."""
        super().setup_env(env_cfg)
        self._timestamp = _LOG_FOLDER
        self._experiment_name = f"run_{next(_number)}"

    def set_randomness(self, seed: int, **kwargs: Any) -> None:
        """Seed all generators, and choose between the fastest kernels and repeatable ones."""
        session = self.session
        self._seed, self._deterministic = session.seed, session.deterministic
        seed_all(session.seed)
        allow_tf32(False)
        torch.use_deterministic_algorithms(session.deterministic)
        torch.backends.cudnn.deterministic = session.deterministic
        on_gpu = session.device.type == "cuda"
        torch.backends.cudnn.benchmark = on_gpu and not session.deterministic

    def build_logger(self, **kwargs: Any) -> MMLogger:
        """Log to a file alone: a person reads our own lines.

        Singletons of mmengine are found by name, so that each run of a process needs its own.
        """
        self._experiment_name = f"run_{next(_number)}"
        logger = super().build_logger(**kwargs)
        logger.handlers[:] = [h for h in logger.handlers if type(h) is not logging.StreamHandler]
        return logger

    def build_visualizer(self, visualizer: Visualizer | dict | None = None) -> Visualizer:
        """Build a visualizer of this run alone."""
        if isinstance(visualizer, dict):
            visualizer = {**visualizer, "name": self._experiment_name}
        return super().build_visualizer(visualizer)

    def _log_env(self, env_cfg: dict) -> None:
        """Log nothing: the run's metadata has it, and mmengine would start nvcc and gcc."""

    def dump_config(self) -> None:
        """Write nothing: the run folder keeps the config."""

    # Model, optimiser, data

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap for micro-batches and the average over ranks, also on one rank."""
        session, device = self.session, self.session.device
        model = model.to(device)
        training = isinstance(session, TrainingSession)
        several = get_world_size() > 1 and device.type == "cuda"
        if training and several and not session.deterministic:
            wrapped = MicroBatchDDP(
                model,
                device_ids=[device.index],
                **ddp_options(self.cfg.get("find_unused_parameters"), session.split.accumulation),
            )
        else:
            wrapped = OrderedAverage(model)
        if training:
            wrapped.set_batch(session.split, get_rank(), session.seed)
        return wrapped

    def _init_model_weights(self) -> None:
        """Give all ranks the values of the first; they were drawn when the model was built."""
        for value in self.model.module.state_dict().values():
            broadcast(value)

    def build_optim_wrapper(self, optim_wrapper: OptimWrapper | dict) -> OptimWrapper:
        """Build the optimiser for the run's precision and micro-batches."""
        if isinstance(optim_wrapper, dict) and not isinstance(optim_wrapper, OptimWrapper):
            optim_wrapper = wrap_optimizer(copy.deepcopy(optim_wrapper), self.session.precision)
            optim_wrapper["accumulative_counts"] = self.session.split.accumulation
        return super().build_optim_wrapper(optim_wrapper)

    def build_dataloader(
        self, dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Build a loader; training data is a function of (seed, position) for any data set."""
        if isinstance(dataloader, DataLoader):
            return dataloader
        session, training = self.session, dataloader is self._train_dataloader
        dataloader = configure_workers(copy.deepcopy(dataloader), session.workers, session.device)
        if not training:
            dataloader.batch_size = getattr(
                self.model.module, "images_per_batch", dataloader.get("batch_size", 1)
            )
            return Runner.build_dataloader(dataloader, seed=seed)
        dataloader.batch_size = session.split.batch_per_rank
        dataloader.dataset = {
            "type": SeededDataset,
            "dataset": dataloader.dataset,
            "seed": session.seed,
        }
        dataloader.sampler = {
            "type": IterationSampler,
            "total_batch_size": session.split.global_batch,
        }
        dataloader.pop("batch_sampler", None)
        return Runner.build_dataloader(dataloader)

    def _maybe_compile(self, target: str) -> None:
        """Compile parts of the model instead of `train_step`."""
        if compiles(self.cfg):
            compile_parts(self.model.module, self.cfg)

    # Loops and hooks

    def build_train_loop(self, loop: dict) -> ExactTrainLoop:
        """Build our loop with the settings of the config's.

        Raises:
            UserError: the config counts epochs, or names another loop.
        """
        loop = copy.deepcopy(loop)
        kind = loop.pop("type", "IterBasedTrainLoop")
        if loop.pop("by_epoch", False) or kind == "EpochBasedTrainLoop":
            raise UserError("train_cfg: counts epochs; write max_iters and IterBasedTrainLoop")
        _require("train_cfg", kind, "IterBasedTrainLoop")
        return super().build_train_loop({**loop, "type": ExactTrainLoop})

    def build_val_loop(self, loop: dict) -> ExactValLoop:
        """Build our loop with the settings of the config's.

        Raises:
            UserError: the config names another loop.
        """
        _require("val_cfg", loop.get("type", "ValLoop"), "ValLoop")
        return super().build_val_loop({**loop, "type": ExactValLoop})

    def build_test_loop(self, loop: dict) -> ExactTestLoop:
        """Build our loop with the settings of the config's.

        Raises:
            UserError: the config names another loop.
        """
        _require("test_cfg", loop.get("type", "TestLoop"), "TestLoop")
        return super().build_test_loop({**loop, "type": ExactTestLoop})

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        """Register the config's hooks; CheckpointHook only where it does more than our states."""
        hooks = {"runtime_info": {"type": "QuietRuntimeInfoHook"}, **(hooks or {})}
        if not _CHECKPOINT_HOOK_KEYS & set(hooks.get("checkpoint") or {}):
            hooks["checkpoint"] = None
        super().register_default_hooks(hooks)
        if isinstance(self.session, TrainingSession):
            self.register_hook(MetricsHook(self.session.log_interval))
            self.register_hook(SystemMetricsHook())

    def batch_settings(self) -> Any:
        """Return what the run's batches depend on besides the iteration, as comparable text."""
        loaders = (self.cfg.train_dataloader, self.cfg.get("val_dataloader"))
        return repr((self.session.seed, self.session.split, loaders))

    # State

    def load_or_resume(self) -> None:
        """Continue from the newest whole state, else begin as the config says."""
        session = self.session
        if not isinstance(session, TrainingSession):
            return
        if session.resume_from is None:
            super().load_or_resume()
        else:
            self._restore(load_state(session.resume_from))
        barrier()  # no rank may replace a checkpoint that another one still reads

    def _restore(self, state: dict[str, Any]) -> None:
        self._resume = self._has_loaded = True
        self.call_hook("after_load_checkpoint", checkpoint=state)
        self.model.module.load_state_dict(state["state_dict"])
        self.optim_wrapper.load_state_dict(state["optimizer"])
        for scheduler, values in zip(self._schedulers(), state["param_schedulers"], strict=True):
            scheduler.load_state_dict(values)
        restore_hub(self.message_hub, state["message_hub"])
        self.resumed = {**state["loop"], "iteration": state["meta"]["iteration"]}

    def save_state(self) -> None:
        """Write the state of the run on the first rank; every rank calls the hooks.

        Raises:
            UserError: a hook added a value to the checkpoint that cannot be saved.
        """
        state = self.saved_state()
        state["optimizer"] = self.optim_wrapper.state_dict()
        extra = set(state) - {"state_dict", "optimizer"}
        state |= {key: to_plain(state[key]) for key in extra}
        if lost := sorted(key for key in extra if not is_plain(state[key])):
            raise UserError(
                f"a hook adds {', '.join(lost)} to checkpoints, which is more than numbers, text "
                "and tensors; remove the hook from custom_hooks"
            )
        session = self.session
        if is_main_process():
            saved = session.checkpoints.save(self.iter, to_cpu(state))
            if saved is not None:
                session.budget.update_save(saved.seconds * session.turn.runs)

    def saved_state(self) -> dict[str, Any]:
        """Return weights and what belongs to them, after the hooks' `before_save_checkpoint`."""
        state = self.weights() | {
            "param_schedulers": [scheduler.state_dict() for scheduler in self._schedulers()],
            "loop": self.train_loop.state(),
        }
        return {**state, "message_hub": hub_state(self.message_hub)}

    def weights(self) -> dict[str, Any]:
        """Return the weights as hooks save them (an EMA's, say), and what identifies them."""
        session = self.session
        state = {
            "meta": {"iteration": self.iter, "identity": session.identity, "seed": session.seed},
            "state_dict": self.model.module.state_dict(),
        }
        self.call_hook("before_save_checkpoint", checkpoint=state)
        return state

    def log_scores(self, scores: dict[str, Any], *, hooks_changed: bool) -> None:
        """Write the scores of an evaluation to the metrics log.

        Args:
            scores: of the evaluators.
            hooks_changed: whether hooks have learnt from them.
        """
        numbers = {key: float(value) for key, value in scores.items() if np.isscalar(value)}
        self.session.metrics.write(
            "eval", iteration=self.iter, **numbers, hooks_changed=hooks_changed
        )

    def _schedulers(self) -> list:
        found = self.param_schedulers or []
        if isinstance(found, dict):
            return [scheduler for part in found.values() for scheduler in part]
        return found


def _require(key: str, kind: Any, wanted: str) -> None:
    if kind != wanted:
        raise UserError(f"{key}: type {kind} cannot be resumed exactly; use {wanted}")
