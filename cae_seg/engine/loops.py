"""mmengine's loops, with what happens between iterations: save, evaluate, stop.

All randomness of an iteration is a function of (seed, iteration, rank, sample), and the state
between two iterations is everything that the next one depends on; so a run that continues from a
checkpoint does exactly what it would have done without the interruption.
"""

import logging
import random
import time
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.registry import LOOPS
from mmengine.runner import IterBasedTrainLoop, Runner, TestLoop, ValLoop
from torch import nn

from cae_seg.engine.compilation import eager
from cae_seg.engine.drift import check_ranks_agree
from cae_seg.engine.precision import evaluating
from cae_seg.engine.ranks import Agreement
from cae_seg.engine.state import HookStates
from cae_seg.run.deadline import Interrupted
from cae_seg.run.nonfinite import check_finite

logger = logging.getLogger(__name__)

SAVE_SECONDS = 1800.0  # a checkpoint at least this often
_STREAM = 0x746F7263  # keeps this stream apart from the others drawn from the seed


def seed_iteration(seed: int, iteration: int, rank: int) -> None:
    """Seed the global generators for whatever a module or hook draws in one iteration."""
    words = np.random.SeedSequence([_STREAM, seed, iteration, rank])
    first, second, third = (int(word) for word in words.generate_state(3, np.uint64))
    # torch.manual_seed would also format the stack for each kind of device that is not there.
    torch.default_generator.manual_seed(first >> 1)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(first >> 1)
    np.random.seed(second % 2**32)
    random.seed(third)


@LOOPS.register_module()
class ExactTrainLoop(IterBasedTrainLoop):
    """`IterBasedTrainLoop` that can be left and continued between any two iterations."""

    runner: Runner

    def run(self) -> nn.Module:
        """Train to the end.

        Raises:
            Interrupted: a signal or the time budget asked to; the state is saved.
            UserError: the ranks have drifted apart.
        """
        self._begin()
        self._save_or_evaluate()
        while self._iter < self._max_iters and not self.stop_training:
            self._iterate()
            self._save_or_evaluate()
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model

    def state(self) -> dict[str, Any]:
        """Return what `run` needs besides weights and optimiser, as plain values."""
        return {
            "evaluated": self._evaluated == self._iter,
            "stop_training": self.stop_training,
            "hooks": self._hook_states.state(),
        }

    def _begin(self) -> None:
        runner, session, resumed = self.runner, self.runner.session, self.runner.resumed
        self._iter = resumed.get("iteration", 0)
        self._started = self._saved = self._iter
        self._saved_at = time.monotonic()
        self._agreement = Agreement()
        self._evaluated = self._iter if resumed.get("evaluated") else -1
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        self._hook_states = HookStates(runner.hooks)
        self._hook_states.restore(resumed.get("hooks", {}))
        self.stop_training = resumed.get("stop_training", False)
        passes = session.split.accumulation
        runner.optim_wrapper.initialize_count_status(
            runner.model, self._iter * passes, self._max_iters * passes
        )
        self._decide_current_val_interval()
        self._loaded = 0
        session.turn.join(runner.model.module, runner.batch_settings())
        # After `join`, which may put another run's backbone into the model.
        self._attributes = [vars(module) for module in runner.model.modules()]
        self._train_modes: list[bool] = []  # as `train()` left them: frozen parts do not change

    def _iterate(self) -> None:
        runner, session = self.runner, self.runner.session
        begin = time.monotonic()
        session.turn.wait(self._iter)
        self._set_train_mode()
        loading = time.monotonic()
        batch = session.turn.batch("train", self._iter, self._load)
        runner.data_seconds = time.monotonic() - loading
        seed_iteration(session.seed, self._iter, get_rank())
        runner.model.iteration = self._iter
        self.run_iter(batch)
        session.budget.update_step(time.monotonic() - begin)
        self._decide_current_val_interval()

    def _set_train_mode(self) -> None:
        """Put the model into train mode; walk through its modules only if one has left it."""
        if self._modes() != self._train_modes:
            self.runner.model.train()
            self._train_modes = self._modes()

    def _modes(self) -> list[bool]:
        return [attributes["training"] for attributes in self._attributes]

    def _load(self) -> Any:
        """Load the batch of this iteration."""
        if self._iter != self._loaded:  # those before were trained earlier, or loaded elsewhere
            self.dataloader_iterator.skip_iter(self._iter)
        self._loaded = self._iter + 1
        return next(self.dataloader_iterator)

    def _save_or_evaluate(self) -> None:
        """Do between two iterations what all ranks agree on.

        Raises:
            Interrupted: any rank wants to stop.
        """
        last = self._iter >= self._max_iters or self.stop_training
        evaluate = self._evaluation_due()
        stop, save, evaluation_waits = self._agree(evaluate=evaluate, last=last)
        if self._iter != self._saved and (stop or save or evaluate or last):
            self._save()
        if stop and not (last and not evaluate):
            raise Interrupted
        if evaluate:
            if evaluation_waits and self._iter != self._started:
                raise Interrupted
            self._evaluate()

    def _evaluation_due(self) -> bool:
        return (
            self.runner.val_loop is not None
            and self._iter >= max(self.val_begin, 1)
            and (self._iter % self.val_interval == 0 or self._iter == self._max_iters)
            and self._evaluated != self._iter
            and self._iter not in self.runner.evaluated
        )

    def _agree(self, *, evaluate: bool, last: bool) -> tuple[bool, bool, bool]:
        """Return what any rank wants: to stop, to save, to leave the evaluation for later."""
        session = self.runner.session
        wishes = [
            session.stop.name is not None or session.budget.should_stop(),
            time.monotonic() - self._saved_at > SAVE_SECONDS,
            evaluate and not session.budget.has_time_for_eval(),
        ]
        now = evaluate or last or self._iter == self._started
        stop, aged, waits = (bool(wish) for wish in self._agreement.reach(wishes, now=now))
        return stop, aged or self._iter % session.save_interval == 0, waits

    def _save(self) -> None:
        check_ranks_agree(self.runner.model.module, self._iter)
        check_finite(self.runner.model.module.state_dict(), self._iter)
        self.runner.save_state()
        self._saved, self._saved_at = self._iter, time.monotonic()

    def _evaluate(self) -> None:
        """Evaluate, and save again where hooks have learnt from the scores.

        The line in the metrics log says whether they have: where not, a run that is killed before
        its next checkpoint need not repeat the evaluation.
        """
        before, begin = self._hook_states.state(), time.monotonic()
        scores = self.runner.val_loop.run()
        self.runner.session.budget.update_eval(time.monotonic() - begin)
        self._evaluated = self._iter
        learnt = self._hook_states.differ(before) or self.stop_training
        self.runner.log_scores(scores, hooks_changed=learnt)
        if learnt:
            self._save()


class _Interruptible:
    """What the validation and the test loop share."""

    runner: Runner

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Predict one batch of images.

        Raises:
            Interrupted: a signal or the deadline asked to.
        """
        session = self.runner.session
        if session.must_stop():
            raise Interrupted
        # Around an image, not around all of them: other runs may take turns in between.
        precision = evaluating(session.evaluation_precision, session.device.type)
        with precision, eager(self.runner.cfg):
            super().run_iter(idx, data_batch)


@LOOPS.register_module()
class ExactValLoop(_Interruptible, ValLoop):
    """`ValLoop` that can be left between images."""

    def __init__(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        super().__init__(runner, *args, **kwargs)
        self.dataloader = runner.session.turn.loader(self.dataloader, lambda: runner.iter)


@LOOPS.register_module()
class ExactTestLoop(_Interruptible, TestLoop):
    """`TestLoop` that can be left between images."""
