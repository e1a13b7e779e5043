"""The recipe of a run: one frozen dataclass per concern, every field with its trade-off."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from bayestune.data.prompt import PromptConfig
from bayestune.errors import ConfigError


def _check(ok: bool, key: str, given: object, expected: str) -> None:
    if not ok:
        raise ConfigError(f"{key} is {given!r}; expected {expected}.")


@dataclass(frozen=True)
class AdapterConfig:
    """Where and how the backbone is adapted."""

    kind: Literal["polar", "lora", "contextual"] = "polar"
    rank: int = 8
    alpha: float = 16.0  # ΔW is scaled by alpha / rank
    dropout: float = 0.0
    targets: str = "auto"  # auto (query and value projections) | all-linear | comma-separated names
    layers: str = "top:25%"  # all | top:8 | top:25% | comma-separated indices

    def __post_init__(self) -> None:
        _check(self.rank >= 1, "adapter.rank", self.rank, "a whole number of at least 1")
        _check(self.alpha > 0, "adapter.alpha", self.alpha, "a positive number")
        _check(0 <= self.dropout < 1, "adapter.dropout", self.dropout, "a number in [0, 1)")


@dataclass(frozen=True)
class HeadConfig:
    """The distribution over the last layer."""

    kind: Literal["gaussian", "linear", "generative", "ordinal"] = "gaussian"
    prior: Literal["auto", "zero", "pretrained"] = "auto"  # auto: pretrained for answer letters
    prior_scale: float = 1.0  # prior logit variance is 2 · prior_scale · max(1, ln K)
    init_scale: float = 0.5  # initial standard deviation of a logit, in logits
    covariance: Literal["diagonal", "low_rank", "kronecker", "eigen", "dense"] = "diagonal"
    columns: int = 4  # of the low-rank covariance
    axes: int = 128  # of a generative head: the most principal axes of the features it reads
    joint: bool = False  # a generative head trains the adapter; else it replaces one that did
    bound: Literal["jensen", "tilted", "exact", "monte_carlo"] = "jensen"  # of the likelihood term
    learn_prior: bool = False  # empirical Bayes: the prior variance follows the posterior
    noise: Literal["gaussian", "student", "heteroscedastic"] = "gaussian"  # around a number
    pooling: Literal["auto", "last", "mean", "cls"] = "auto"  # auto: last decoders, mean encoders

    def __post_init__(self) -> None:
        _check(self.prior_scale > 0, "head.prior_scale", self.prior_scale, "a positive number")
        _check(self.init_scale > 0, "head.init_scale", self.init_scale, "a positive number")
        _check(self.columns >= 1, "head.columns", self.columns, "at least 1")
        _check(self.axes >= 1, "head.axes", self.axes, "at least 1")


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation of one evidence lower bound."""

    epochs: int = 5
    max_steps: int = 0  # batches in all, whatever epochs says; 0: epochs of them
    batch_size: int = 16
    lr: float = 2e-3  # peak learning rate of the adapter
    head_lr: float = 5e-3  # peak learning rate of the head, in units of features with ‖φ‖² = D
    core: Literal["spectral", "adam"] = "spectral"  # step of Θ; adam lets it fall to rank one
    warmup: float = 0.06  # share of all steps with a rising rate; linear decay after it
    floor: float = 0.0  # lowest share of the peak rate: the decay ends there
    clip: float = 1.0  # largest norm of the adapter's gradient; 0 switches clipping off
    weight_decay: float = 0.0  # decoupled, on Euclidean adapter parameters (never on X, Y)
    kl: float | Literal["auto"] = "auto"  # κ: the KL weighs κ/N; auto: by held-out likelihood
    head_steps: int = 1  # head updates per adapter update, all on the same backbone pass
    # Step of the posterior's log deviations; auto: natural for classes, a diagonal covariance.
    deviations: Literal["auto", "adam", "natural"] = "auto"
    schedule: Literal["alternate", "joint"] = "alternate"
    class_weights: Literal["none", "balanced"] | str = "none"  # or name=weight,name=weight
    label_smoothing: float = 0.0  # share of each label spread over all classes; point heads only
    entropy_bonus: float = 0.0  # weight of the predictive's entropy in the loss; point heads only
    hold_out: float = 0.1  # share of the training rows held out where no validation set is given
    patience: int = 0  # epochs without a better validation NLL before stopping; 0: run them all
    # At a loss, gradient or feature that is NaN or infinite: stop, or leave that batch out.
    nonfinite: Literal["stop", "skip"] = "stop"
    keep: Literal["best", "last"] = "best"  # which epoch's weights are kept, by validation NLL

    def __post_init__(self) -> None:
        _check(self.epochs >= 1, "train.epochs", self.epochs, "at least 1")
        _check(self.max_steps >= 0, "train.max_steps", self.max_steps, "0 or more")
        _check(self.batch_size >= 1, "train.batch_size", self.batch_size, "at least 1")
        _check(self.lr > 0, "train.lr", self.lr, "a positive number")
        _check(self.head_lr > 0, "train.head_lr", self.head_lr, "a positive number")
        _check(0 <= self.warmup < 1, "train.warmup", self.warmup, "a share in [0, 1)")
        _check(0 <= self.floor <= 1, "train.floor", self.floor, "a share in [0, 1]")
        _check(self.clip >= 0, "train.clip", self.clip, "0 or a positive number")
        _check(self.weight_decay >= 0, "train.weight_decay", self.weight_decay, "0 or more")
        _check(self.kl == "auto" or float(self.kl) >= 0, "train.kl", self.kl, "'auto' or 0 or more")
        _check(self.head_steps >= 1, "train.head_steps", self.head_steps, "at least 1")
        for key in ("label_smoothing", "entropy_bonus"):
            value = getattr(self, key)
            _check(0 <= value < 1, f"train.{key}", value, "a number in [0, 1)")
        _check(0 <= self.hold_out < 1, "train.hold_out", self.hold_out, "a share in [0, 1)")
        _check(self.patience >= 0, "train.patience", self.patience, "0 or more")


@dataclass(frozen=True)
class FinalizeConfig:
    """What is done to the posterior once, after training, on cached features."""

    #: Laplace covariance at the mean
    refresh: Literal["auto", "none", "diagonal", "eigen", "block", "kronecker", "full"] = "auto"
    refit: Literal["none", "mode", "ascent"] = "none"  # whether the mean moves with the covariance
    #: of the refresh, in units of the prior's precision; evidence: by the training labels alone
    precision: float | Literal["auto", "evidence"] = "auto"
    groups: Literal["shared", "class", "feature"] = "shared"  # weights that share the evidence's
    scale: float | Literal["auto"] = "auto"  # factor on the trained standard deviations
    temperature: float | Literal["auto", "none"] = "auto"  # auto: by held-out likelihood

    def __post_init__(self) -> None:
        for key in ("precision", "scale", "temperature"):
            value = getattr(self, key)
            _check(
                isinstance(value, str) or value > 0,
                f"finalize.{key}",
                value,
                "'auto' or a positive number",
            )
        _check(
            self.refit == "none" or self.refresh != "none",
            "finalize.refit",
            self.refit,
            "'none' where finalize.refresh is 'none': the mean moves with a new covariance",
        )
        _check(
            self.refit != "ascent" or self.refresh not in ("kronecker", "full"),
            "finalize.refresh",
            self.refresh,
            "auto, diagonal, eigen or block with finalize.refit=ascent, whose classes are "
            "independent",
        )
        _check(
            self.groups == "shared" or self.refresh in ("auto", "block"),
            "finalize.refresh",
            self.refresh,
            "auto or block with finalize.groups, whose precisions go into dense class blocks",
        )


@dataclass(frozen=True)
class CacheConfig:
    """The frozen-prefix cache: hidden states entering the first adapted layer, once per text."""

    prefix: Literal["auto", "on", "off"] = "auto"  # auto: wherever the architecture allows it
    max_gb: float = 4.0  # in memory up to this size, in a memory-mapped file beyond it
    max_disk_gb: float = 64.0

    def __post_init__(self) -> None:
        _check(self.max_gb >= 0, "cache.max_gb", self.max_gb, "0 or more gigabytes")
        _check(self.max_disk_gb >= 0, "cache.max_disk_gb", self.max_disk_gb, "0 or more gigabytes")


@dataclass(frozen=True)
class PredictConfig:
    """How logit moments become probabilities."""

    #: auto: exact for two classes, sample for more
    predictive: Literal["auto", "sample", "exact", "probit", "laplace_bridge"] = "auto"
    #: 0: the posterior's mean. Of a Gaussian head in logit space, at no backbone pass; of random
    #: adapter weights each is a pass through the adapted layers (auto: 10)
    samples: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        _check(
            self.samples == "auto" or int(self.samples) >= 0,
            "predict.samples",
            self.samples,
            "'auto', 0 (the posterior's mean) or more",
        )


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run, but for the data."""

    method: str = "polar_vbll"
    model: str = "smollm2-135m"
    revision: str | None = None
    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda | cuda:1 | mps
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of the frozen backbone
    #: its linear layers in 4 or 8 bits, by bitsandbytes, as they are loaded
    quantize: Literal["none", "nf4", "int8"] = "none"
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    finalize: FinalizeConfig = field(default_factory=FinalizeConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    #: options of the method's own, mostly of its distribution over the adapter's weights
    weights: dict[str, Any] = field(default_factory=dict)
