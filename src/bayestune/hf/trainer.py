"""A Trainer whose objective is the evidence lower bound of adapters and a Bayesian last layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.modeling_outputs import SequenceClassifierOutput

from bayestune.config import PredictConfig
from bayestune.errors import NumericsError
from bayestune.finalize import Features
from bayestune.head import GaussianHead, LinearHead
from bayestune.head.precision import wide_device
from bayestune.hf import checks
from bayestune.hf.batches import BatchReader, Step, some_rows
from bayestune.hf.card import add_uncertainty
from bayestune.hf.metrics import compute_metrics
from bayestune.hf.nonfinite import Before, is_finite, require_finite
from bayestune.hf.pooled import head_of
from bayestune.hf.posterior import PosteriorStep, terms_for_adapter
from bayestune.methods.parts import predict
from bayestune.peft import adapter_report, summarise

_Base = Trainer if TYPE_CHECKING else object

_TINY = torch.finfo(torch.float32).tiny


class BayesTrainerMixin(_Base):
    """Makes a `Trainer` learn adapters and the posterior of the last layer by one objective.

        L(φ, η) = mean NLL bound + κ/N · KL(q_η ‖ p)

    ``class BayesTrainer(BayesTrainerMixin, Trainer)`` takes what `Trainer` takes, a sequence
    classifier with a head of `bayestune.head.install` and ``optimizer_cls_and_kwargs =
    bt.optim.for_trainer(...)``. Each step moves the posterior on the features as they are, then
    backpropagates into the adapter against the new posterior, through the same pass.

    The mean runs over all rows of a step: those of every micro-batch and every process. With
    gradient accumulation the posterior has to move before the first micro-batch is backpropagated,
    so the others are read once more, without gradients; ``schedule="joint"`` reads each once.

    A loss, gradient or feature that is NaN or infinite stops the training, with model, optimiser
    and generators as they were before that step; a checkpoint of them is saved unless
    ``save_strategy="no"`` or several processes train together.

    Evaluation and prediction give log posterior predictive probabilities as ``logits``, and report
    NLL, ECE, Brier score, accuracy and mean epistemic uncertainty in nats.

    Args:
        *args: of `Trainer`.
        kl: κ; 1 is the ELBO, less a colder posterior.
        schedule: ``"alternate"``, or ``"joint"``: adapter and posterior step at the same point.
        head_steps: updates of the posterior per update of the adapter.
        deviations: step of the posterior's deviations, see ``train.deviations``.
        train_rows: N, where the training set has no length.
        **kwargs: of `Trainer`.

    Raises:
        ConfigError: an argument asks for what it does not do, or N is not known.
        ModelError: the model has no Bayesian last layer.
    """

    #: The loss that `compute_loss` returns in a step is a share of the whole step's mean.
    loss_is_scaled_for_ga = True
    model: Any

    def __init__(
        self,
        *args: Any,
        kl: float = 1.0,
        schedule: str = "alternate",
        head_steps: int = 1,
        deviations: str = "auto",
        train_rows: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        checks.require_schedule(schedule, kl, head_steps)
        checks.require_arguments(self.args, self)
        checks.require_model(self.model)
        checks.settle_metric(self.args)
        self.kl, self.schedule, self.head_steps = kl, schedule, head_steps
        self.deviations, self.train_rows = deviations, train_rows
        if self.train_dataset is not None:
            self._count_rows()
        self.compute_metrics = self._with_own(self.compute_metrics)
        self.add_callback(_EveryEpoch())
        self._batches = BatchReader(
            self.label_names[0], lambda: getattr(self.model.config, "pad_token_id", None)
        )
        self._posterior: PosteriorStep | None = None
        self._step: Step | None = None
        self._open: Step | None = None
        self._before: Before | None = None
        self._epistemic: list[Tensor] = []

    @property
    def head(self) -> GaussianHead | LinearHead:
        """The distribution over the last layer."""
        return head_of(self.model)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Set the head's scales by features as training starts, then build its groups."""
        head = self.head
        if head.feature_energy.isnan():
            home = head.weight.device
            phi = self._first_features().to(wide_device(home))
            head.to(phi.device).set_feature_energy(phi)
            head.to(home)
        made = super().create_optimizer(*args, **kwargs)
        optimizer = checks.require_optimizer(getattr(made, "optimizer", made))
        for group in optimizer.param_groups:
            group.setdefault("peak", group["lr"])
        self._posterior = PosteriorStep(
            head,
            optimizer,
            kappa=self.kl,
            rows=self._count_rows(),
            deviations=self.deviations,
            reduce=lambda tensor: self.accelerator.reduce(tensor, "mean"),  # pyright: ignore
        )
        return made

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Return the micro-batches of the next step, and count their rows."""
        before = self._now()
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._step, self._before = self._begin(batches), before
        return batches, items

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Backpropagate one micro-batch; the posterior moves before the first or with the last.

        Raises:
            NumericsError: a loss, gradient or feature is not finite.
        """
        step = self._step
        if step is None or step.complete:  # called by itself, a batch is a step
            step, self._before = self._begin([inputs]), self._now()
            self._step = step
        # Older releases do not ask whether the loss is scaled already, and divide it by this.
        self.current_gradient_accumulation_steps = 1
        step.seen += 1
        self._open = step
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
            # A scaler of float16 leaves such steps out itself, and tries smaller ones.
            if step.complete and self.accelerator.scaler is None:
                require_finite(loss, self.model)
            if self.schedule == "joint" and step.complete:
                self._move(step.kept, step)
        except NumericsError as error:
            raise NumericsError(f"{error} {self._stop()}") from error
        finally:
            self._open = None
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the objective of a batch, within a step this batch's share of the whole one.

        Args:
            model: the model, wrapped or not.
            inputs: the batch with its labels.
            return_outputs: whether to return outputs too, log predictive probabilities as logits.
            num_items_in_batch: not looked at; rows are counted over all micro-batches here.

        Raises:
            DataError: a label is missing or out of range.
            NumericsError: a feature is not finite.
        """
        step, head = self._open, self.head
        now = self._batches.read(model, head, inputs)
        share = 1.0
        if step is not None:
            share = len(now) / step.rows
            if self.schedule == "joint":
                step.kept.append(Features(now.phi.detach(), now.labels))
            elif step.seen == 1:
                with torch.no_grad():
                    others = [
                        self._batches.read(model, head, self._prepare_inputs(batch))
                        for batch in step.batches[1:]
                    ]
                self._move([now, *others], step)
        terms = terms_for_adapter(head, now)
        loss = share * (terms.nll + self.kl / self._count_rows() * terms.kl)
        if not return_outputs:
            return loss
        with torch.no_grad():
            logits = log_probs(predict(head, now.phi, PredictConfig()))
        return loss, SequenceClassifierOutput(loss=loss, logits=logits)  # pyright: ignore

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the mean NLL, log predictive probabilities ``(B, K)`` and labels of a batch."""
        inputs, head = self._prepare_inputs(inputs), self.head
        labels = inputs.get(self.label_names[0])
        with torch.no_grad(), self.compute_loss_context_manager():
            phi = self._batches.features(model, head, inputs)
            found = predict(head, phi, PredictConfig())
        logits = log_probs(found)
        self._epistemic.append(self.gather_function(found.epistemic).cpu())  # pyright: ignore
        loss = None if labels is None else nn.functional.nll_loss(logits, labels)
        return (loss, None, None) if prediction_loss_only else (loss, logits, labels)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Evaluate, and add the mean epistemic uncertainty in nats."""
        self._epistemic = []
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        if self._epistemic and output.metrics is not None:
            mean = torch.cat(self._epistemic).double().mean()
            output.metrics[f"{metric_key_prefix}_epistemic"] = float(mean)
        return output

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log; beside a training loss the KL in nats, and what the adapter has become."""
        if "loss" in logs:
            with torch.no_grad():
                logs["kl"] = float(self.head.kl())
            logs |= summarise(adapter_report(self.model))
        super().log(logs, *args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card of `Trainer`, and how to have the model's uncertainty."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            add_uncertainty(Path(str(self.args.output_dir)) / "README.md")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any) -> None:
        checks.require_posterior(Path(resume_from_checkpoint), self.head)
        super()._load_from_checkpoint(resume_from_checkpoint, *args)

    def _count_rows(self) -> int:
        return checks.rows_of(self.train_dataset, self.train_rows)

    def _begin(self, batches: Sequence[Any]) -> Step:
        count = torch.tensor(float(self._batches.count(batches)), device=self.args.device)
        return Step(batches, float(self.accelerator.reduce(count, "mean")))  # pyright: ignore

    def _now(self) -> Before | None:
        if self._posterior is None:  # there is no optimiser yet
            return None
        return Before(self.head, self._posterior.optimizer, self.args.device)

    def _stop(self) -> str:
        """Return to the state before the step, and keep it; return where it is, in words."""
        if self._before is not None:
            self._before.restore()
        self.model.zero_grad()
        step = self.state.global_step
        said = f"It was in step {step + 1}; the model is as it was before it"
        # Others may be within their step, and wait for ever for one that is saving.
        alone = self.args.world_size == 1 and self.args.save_strategy != "no"
        if not (step and alone and is_finite(self.model)):
            return f"{said}."
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{step}"
        if not folder.exists():
            self._save_checkpoint(self.model, trial=None)
        return f"{said}, and so is {folder}: resume_from_checkpoint goes on from there."

    def _move(self, batches: Sequence[Features], step: Step) -> None:
        assert self._posterior is not None, "there is no optimiser yet"
        share = sum(map(len, batches)) / step.rows
        for _ in range(self.head_steps):
            self._posterior(batches, share)

    def _first_features(self) -> Tensor:
        """Return the features of some training rows ``(n, D)``, the same on every process."""
        training, found = self.model.training, []
        self.model.eval()
        with torch.random.fork_rng(), torch.no_grad():  # the order of batches stays what it was
            for batch in self.get_test_dataloader(some_rows(self.train_dataset)):
                phi = self._batches.features(self.model, self.head, self._prepare_inputs(batch))
                found.append(self.accelerator.gather_for_metrics(phi.float()))
        self.model.train(training)
        return torch.cat(found)

    def _with_own(self, given: Callable[..., dict[str, Any]] | None) -> Any:
        """Return a function that reports ours beside what the user's reports."""
        if self.args.batch_eval_metrics or given is compute_metrics:
            return given
        if given is None:
            return compute_metrics
        return lambda prediction: {**compute_metrics(prediction), **given(prediction)}


class BayesTrainer(BayesTrainerMixin, Trainer):
    """`Trainer` with the objective of `BayesTrainerMixin`, for those who need no other mixin."""


class _EveryEpoch(TrainerCallback):
    """Moves the prior to its optimum between epochs, where the head is to learn it."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A resumed run begins its epoch a second time, in its middle.
        if state.epoch and state.epoch == int(state.epoch):
            head_of(kwargs["model"]).update_prior()


def log_probs(found: Any) -> Tensor:
    """Return the logarithms of predictive probabilities ``(B, K)``, all finite."""
    return found.probs.clamp_min(_TINY).log()
