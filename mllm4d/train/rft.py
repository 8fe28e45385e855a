"""Reinforcement fine-tuning: GRPO and its relatives, with the video prompt paid for once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import Metric

from mllm4d.data.stream import QuestionBatch
from mllm4d.models.base import BaseModel, reference
from mllm4d.models.completions import Rollout, stack
from mllm4d.models.inputs import VideoInputs, VideoSettings
from mllm4d.models.prompts_only import PromptInputs
from mllm4d.models.sharing import Scorer, SharedPrefix, score_all
from mllm4d.schema import InputError, Question
from mllm4d.train.advantages import AdvantageFunction, across_ranks, group_scaled
from mllm4d.train.collapse import Collapse
from mllm4d.train.completions import completion_mask, importance_weights, masked_sum
from mllm4d.train.experience import (
    Experience,
    flat_prompts,
    in_minibatches,
    step_sums,
    sum_gradients,
    sum_over_ranks,
)
from mllm4d.train.losses import LossFunction, LossTerms, grpo
from mllm4d.train.module import MLLMModule
from mllm4d.train.phases import Phases
from mllm4d.train.rollout import RolloutEngine
from mllm4d.train.scoring import PAPER_REWARDS, Reward, failure_sums, score
from mllm4d.train.seeds import step_seed


class RFT(MLLMModule):
    """Lets a base MLLM answer each question several times, and makes what scored above its group's mean more likely.

    A step: completions are drawn (``engine``), scored (``rewards``), compared within their group (``advantages``), and
    the policy is updated by ``loss`` with gradients that are summed over micro-batches and ranks and divided once. A
    group in which all score the same teaches nothing: it is left out, of the divergence from the reference too (as in
    DAPO; plain GRPO keeps it), and counted.

    Args:
        base: The base MLLM and what of it trains; with ``beta`` it trains adapters alone.
        video: How frames become inputs, in training and evaluation alike.
        metric: Scores the answers in evaluation.
        engine: Draws completions.
        rewards: What completions are scored by; None is the paper's.
        loss: Any of ``mllm4d.train.losses``.
        advantages: Any of ``mllm4d.train.advantages``.
        scorer: Computes log-probabilities; None shares each prompt among its completions.
        group: Completions of each prompt.
        ranks_per_group: So many neighbouring ranks draw a group together; the data module deals prompts accordingly.
        beta: Weight of the divergence from the reference, which is the model without its adapters; 0 skips it.
        updates: How often each completion is learned from (mu).
        minibatches: Optimiser steps into which an update is split.
        resample: How often prompts whose group has no variance are drawn again.
        drop_truncated: Leave completions out that the limit has cut off.
        importance_cap: For engines whose log-probabilities are not this model's: weigh tokens by the ratio of the two,
            at most so much. None trusts the engine.
        gradient_clip: Largest norm of the gradients.
        collapse: When to give up; None never does.
        learning_rate: As in ``MLLMModule``.
        warmup: As there.
        weight_decay: As there.
        betas: As there.
        max_new_tokens: Longest answer in evaluation.
        optimizer: As there.
        learning_rates: As there.
        seed: As there.

    Raises:
        InputError: A number is out of its range, or ``beta`` needs a reference that there is not.
    """

    def __init__(
        self,
        base: BaseModel,
        video: VideoSettings,
        metric: Metric,
        engine: RolloutEngine,
        rewards: Sequence[Reward] | None = None,
        loss: LossFunction = grpo,
        advantages: AdvantageFunction = group_scaled,
        scorer: Scorer | None = None,
        group: int = 12,
        ranks_per_group: int = 1,
        beta: float = 0.001,
        updates: int = 1,
        minibatches: int = 1,
        resample: int = 0,
        drop_truncated: bool = False,
        importance_cap: float | None = None,
        gradient_clip: float = 1.0,
        collapse: Collapse | None = None,
        learning_rate: float = 1e-4,
        warmup: float = 0.0,
        weight_decay: float = 0.0,
        betas: tuple[float, float] | None = None,
        max_new_tokens: int = 1024,
        optimizer: Callable[[Iterable], Optimizer] = torch.optim.AdamW,
        learning_rates: Mapping[str, float] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            base,
            video,
            metric,
            learning_rate,
            warmup,
            weight_decay,
            betas,
            max_new_tokens,
            optimizer,
            learning_rates,
            seed,
        )
        self.automatic_optimization = False
        self.engine, self.rewards = engine, tuple(PAPER_REWARDS if rewards is None else rewards)
        self.loss, self.advantages, self.scorer = loss, advantages, SharedPrefix() if scorer is None else scorer
        self.group, self.ranks_per_group, self.beta = group, ranks_per_group, beta
        self.updates, self.minibatches, self.resample = updates, minibatches, resample
        self.drop_truncated, self.importance_cap, self.gradient_clip = drop_truncated, importance_cap, gradient_clip
        self.collapse = collapse
        self.phases = Phases()
        self._check()

    def make_inputs(self, inputs: VideoInputs, model: torch.nn.Module) -> VideoInputs:
        """Training batches are prompts, each by itself."""
        return PromptInputs(inputs)

    def training_step(self, batch: QuestionBatch, batch_index: int) -> dict[str, Experience]:
        """Draw, score, and learn; returns what was drawn under ``experience``."""
        self.phases.restart(self.device)
        # Of the place in the training alone: a resumed run draws what the run that was not stopped has drawn.
        seed = step_seed(self.seed, self.trainer.current_epoch, batch_index, 0)
        experience, notes = self.explore(batch.inputs.records, batch.questions, seed)
        torch.manual_seed(step_seed(self.seed, self.trainer.current_epoch, batch_index, self.global_rank))
        terms, learned = self._learn(experience)
        self._log_step(experience, notes, terms, learned)
        return {"experience": experience}

    def validation_step(self, batch: QuestionBatch, batch_index: int) -> dict[str, list[str]]:
        """Log the mean reward of the model's likeliest answers; returns them under ``texts``."""
        texts = self.answer(batch)
        total = score(self.rewards, texts, batch.questions).total.nanmean()
        self.log("val/reward", total.float(), batch_size=len(texts), sync_dist=True)
        return {"texts": texts}

    def explore(
        self, prompts: Sequence[Any], questions: Sequence[Question], seed: int
    ) -> tuple[Experience, dict[str, Tensor]]:
        """Draw completions, score them, and find what there is to learn from them.

        Args:
            prompts: Encoded prompts.
            questions: Their questions, in the same order.
            seed: Of the drawing.

        Returns:
            The experience, and sums [2] over this rank for the log, each a value and its count.
        """
        with self.phases("rollout"):
            self.engine.sync(self.model)
        rollouts = self._draw(prompts, seed)
        scored = self._judge(rollouts, questions)
        redrawn = 0
        for attempt in range(self.resample):
            flat = flat_prompts(scored[2].informative, scored[0].groups)
            # All ranks go on together, if only to wait for one another.
            if not sum_over_ranks(torch.tensor(len(flat), device=self.device)):
                break
            redrawn += len(flat)
            if flat:
                again = self._draw([prompts[k] for k in flat], step_seed(seed, attempt, 0, 0))
                for k, rollout in zip(flat, again, strict=True):
                    rollouts[k] = rollout
            scored = self._judge(rollouts, questions)
        said, scores, advantages = scored
        mask = self._mask(rollouts, said)
        chosen = (advantages.informative & mask.any(1)).nonzero()[:, 0]
        experience = Experience(
            rollouts=tuple(rollouts),
            questions=tuple(questions),
            said=said,
            rewards=scores.total.to(self.device),
            parts={reward.name: scores.parts[:, k] for k, reward in enumerate(self.rewards)},
            advantages=advantages.values,
            mask=mask,
            chosen=chosen,
        )
        experience = self._with_other_policies(experience)
        shared = self.ranks_per_group
        notes = {
            "zero_variance": torch.stack([advantages.flat_groups, advantages.groups]).double() / shared,
            "skipped_rewards": torch.stack([advantages.skipped, torch.ones_like(advantages.skipped)]).double(),
            "resampled": torch.tensor([redrawn, len(prompts)], dtype=torch.float64),
            **failure_sums(scores, self.rewards),
        }
        return experience, notes

    def _draw(self, prompts: Sequence[Any], seed: int) -> list[Rollout]:
        own = self.group // self.ranks_per_group
        first = own * (self.global_rank % self.ranks_per_group)
        with self.phases("rollout"):
            return self.engine.generate(self.model, self.inputs, prompts, own, seed, first)

    def _judge(self, rollouts: Sequence[Rollout], questions: Sequence[Question]) -> tuple[Any, Any, Any]:
        """All completions, their scores, their advantages."""
        with self.phases("reward"):
            said = stack(rollouts)
            texts = [text for rollout in rollouts for text in rollout.texts]
            asked = [q for q, rollout in zip(questions, rollouts, strict=True) for _ in rollout.texts]
            scores = score(self.rewards, texts, asked)
            total = scores.total.to(self.device)
            if self.ranks_per_group == 1:
                return said, scores, self.advantages(total, said.groups)
            # Ranks that share prompts have them in the same order.
            shift = self.global_rank // self.ranks_per_group * 2**32
            return said, scores, across_ranks(self.advantages, total, said.groups + shift)

    def _mask(self, rollouts: Sequence[Rollout], said: Any) -> Tensor:
        ends = rollouts[0].policy.ends
        return completion_mask(said.tokens, ends, said.mask.sum(1), self.drop_truncated)

    def _with_other_policies(self, experience: Experience) -> Experience:
        """Add the log-probabilities of the policy before its updates and of the reference, where they are needed."""
        old, weights, known = None, None, None
        rollouts, chosen = experience.rollouts, experience.chosen
        if self.updates * self.minibatches > 1 or self.importance_cap is not None:
            with self.phases("old_log_probs"):
                old = score_all(self.scorer, self.model, self.inputs, rollouts, chosen).log_probs
        if self.importance_cap is not None and old is not None:
            weights = importance_weights(old, experience.said.log_probs, experience.mask, self.importance_cap)
        if self.beta:
            with self.phases("reference"), reference(self.model) as base:
                known = score_all(self.scorer, base, self.inputs, rollouts, chosen).log_probs
        return replace(experience, old_log_probs=old, reference_log_probs=known, weights=weights)

    def _learn(self, experience: Experience) -> tuple[LossTerms, Tensor]:
        """The optimiser steps; sums over all of them and all ranks: the loss's terms, and [4] what else is logged."""
        every = torch.zeros(6, device=self.device, dtype=torch.float64)
        learned = torch.zeros(4, device=self.device, dtype=torch.float64)
        for _ in range(self.updates):
            for numbers in in_minibatches(experience.chosen, self.minibatches):
                with self.phases("update"):
                    terms, more = self._step(experience, numbers)
                every, learned = every + terms, learned + more
        return LossTerms.unstack(every), learned

    def _step(self, experience: Experience, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """One optimiser step on some completions of this rank, together with all ranks."""
        optimizer: Any = self.optimizers()
        schedule: Any = self.lr_schedulers()
        optimizer.zero_grad()
        terms = torch.zeros(6, device=self.device, dtype=torch.float64)
        entropy = torch.zeros(2, device=self.device)
        with self._no_sync():
            for numbers in self.scorer.split(experience.rollouts, chosen) if len(chosen) else []:
                scores = self.scorer.score(self.model, self.inputs, experience.rollouts, numbers)
                tokens = experience.tokens(numbers, scores.log_probs, self.beta, self.engine.max_new_tokens)
                found = self.loss(tokens)
                self.manual_backward(found.loss_sum)
                terms += found.stack()
                entropy += torch.stack(masked_sum(scores.entropy, experience.mask[numbers]))
        terms, entropy = sum_over_ranks(terms), sum_over_ranks(entropy)
        norm, stepped = torch.tensor(0.0, device=self.device), 0.0
        if terms[1] > 0:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            sum_gradients(parameters)
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(terms[1])
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.gradient_clip)
            # All ranks have the same gradients, so that they decide alike.
            if norm.isfinite():
                optimizer.step()
                schedule.step()
                stepped = 1.0
        return terms, torch.cat([entropy.double(), torch.stack([norm.double(), norm.new_tensor(stepped).double()])])

    def _no_sync(self) -> AbstractContextManager:
        """Gradients stay on their rank meanwhile: ranks may have different numbers of micro-batches."""
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return nullcontext() if block is None else block()

    def _log_step(self, experience: Experience, notes: Mapping[str, Tensor], terms: LossTerms, learned: Tensor) -> None:
        """Log the step's means over all ranks, and give up where there is a reason."""
        pairs = {**step_sums(experience), **notes}
        sums = sum_over_ranks(torch.stack([pair.to(self.device) for pair in pairs.values()]))  # [K, 2]
        values = {name: float(total / count.clamp(min=1)) for name, (total, count) in zip(pairs, sums, strict=True)}
        steps = self.updates * self.minibatches
        entropy, tokens, norm, stepped = learned.tolist()
        values |= {
            "loss": float(terms.mean()),
            "kl": float(terms.kl()),
            "clip_fraction": float(terms.clip_fraction()),
            "entropy": entropy / max(tokens, 1),
            "gradient_norm": norm / steps,
            "steps_taken": stepped / steps,
            **{f"seconds/{name}": seconds for name, seconds in self.phases.seconds.items()},
        }
        self.log_dict({f"train/{name}": value for name, value in values.items()})
        self.log("reward", values["reward/mean"], prog_bar=True, logger=False)
        if self.collapse is not None:
            finite = bool(torch.isfinite(torch.tensor([values["loss"], values["kl"], norm])).all())
            self.collapse.look(values["kl"], values["invalid"], finite)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser and its schedule, which knows how many optimiser steps a batch takes."""
        steps, limit = int(self.trainer.estimated_stepping_batches), self.trainer.max_steps
        # Lightning counts batches, but its limit is one of optimiser steps.
        total = steps * self.updates * self.minibatches
        optimizer, schedule = self.make_optimizer(total if limit < 0 else min(total, limit))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Say what trains.

        Raises:
            InputError: The trainer does not fit.
        """
        super().on_fit_start()
        if self.device_mesh is not None or self.trainer.strategy.handles_gradient_accumulation:
            raise InputError("trainer.strategy: RFT trains a model that is whole on every GPU; use auto or ddp")
        if self.trainer.world_size % self.ranks_per_group:
            raise InputError(
                f"model.ranks_per_group: {self.ranks_per_group} does not divide {self.trainer.world_size} ranks"
            )

    def _check(self) -> None:
        for name in ("ranks_per_group", "updates", "minibatches"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name}: {getattr(self, name)} is below 1")
        if self.group < 2 or self.group % self.ranks_per_group:
            raise InputError(
                f"model.group: {self.group}; expected at least 2, and a multiple of 'ranks_per_group', which is "
                f"{self.ranks_per_group}"
            )
        if self.beta < 0 or self.resample < 0 or self.gradient_clip <= 0:
            raise InputError("model: 'beta' and 'resample' cannot be negative, and 'gradient_clip' must be above 0")
        if self.beta and (self.base.lora is None or self.base.train):
            raise InputError(
                "model.beta: the reference is the model without its adapters; give 'base.lora' and train nothing else, "
                "or set beta to 0"
            )
