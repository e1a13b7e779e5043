"""A model that knows when it does not know: backbone, tokeniser, head and how to read a task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import bayestune.peft  # noqa: F401 - registers POLAR with PEFT
from bayestune import methods
from bayestune.backbone import (
    Backbone,
    PrefixCache,
    Reader,
    SharedBases,
    Source,
    identity,
    load_base,
    load_tokenizer,
    pick_device,
    pick_dtype,
    replace_head,
    resolve,
)
from bayestune.config import Recipe, nest_sections, to_mapping
from bayestune.data import Encoded, LabelSet, Scaling, Task
from bayestune.errors import ConfigError, DataError
from bayestune.guarantees import Guarantees, uniforms
from bayestune.methods import Method
from bayestune.metrics import Density
from bayestune.posterior.observed import Observed
from bayestune.prediction import Prediction, RegressionPrediction
from bayestune.preprocessor import Preprocessor, Texts
from bayestune.progress import Progress, silent
from bayestune.readout import Readout


class BayesModel:
    """A language model with a posterior over its last layer (or adapters), ready to predict.

    Attributes:
        method: how it is trained and how it predicts.
        recipe: everything it was built and trained with.
        backbone: the adapted transformer with its bare pooled forward.
        tokenizer: its tokeniser.
        head: the distribution over the last layer.
        task: kind, classes and columns of the task; without examples.
        source: where the backbone came from.
        density: class densities of training features; None before training, and where the head is
            a density itself.
        scaling: mean and standard deviation of the training targets of a regression task.
        cache: frozen states of texts already seen; None computes every text anew.
        guarantees: what `bayestune.calibrate` found; None where the model is not calibrated.
    """

    def __init__(
        self,
        *,
        method: Method,
        recipe: Recipe,
        backbone: Backbone,
        tokenizer: Any,
        head: nn.Module,
        task: Task,
        source: Source,
        density: Density | None = None,
    ) -> None:
        self.method = method
        self.recipe = recipe
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.head = head
        self.task = task
        self.source = source
        self.density = density
        self.scaling = Scaling()
        self.notes: dict[str, Any] = {}
        self.cache: PrefixCache | None = None
        self.guarantees: Guarantees | None = None

    @property
    def labels(self) -> LabelSet:
        """The classes in order."""
        return self.task.labels

    @property
    def preprocessor(self) -> Preprocessor:
        """What it makes of texts, without its backbone."""
        decoder = self.backbone.decoder
        prompt, length = self.recipe.prompt, self.max_length
        return Preprocessor(self.task, prompt, self.tokenizer, decoder, length)

    @property
    def readout(self) -> Readout:
        """What it makes of pooled features, without its backbone."""
        predict, names = self.recipe.predict, self.labels
        return Readout(self.method, predict, self.head, names, self.density, self.scaling)

    @property
    def settings(self) -> dict[str, Any]:
        """What predictions depend on beside what was learnt."""
        dtype = str(self.backbone.dtype).removeprefix("torch.")
        return {"samples": self.recipe.predict.samples, "dtype": dtype}

    def set_head(self, head: nn.Module) -> None:
        """Take another head, here and where PEFT saves it."""
        if head is not self.head:
            replace_head(self.backbone, head)
            self.head = head

    def read(self, texts: Texts) -> Task:
        """Return texts, pairs, rows or a task as examples of this model's task.

        Raises:
            DataError: if they are not of its kind, or offer more choices than it has letters.
        """
        return self.preprocessor.read(texts)

    def targets(self, task: Task) -> Tensor:
        """Return the class of every example as an index, or its number in float64, ``(N,)``.

        Raises:
            DataError: if the task has other classes, or a row has no label.
        """
        if self.task.kind == "regression":
            found = torch.tensor(self.read(task).values, dtype=torch.float64)
            _require_labels(task, found.isnan())
            return found
        if tuple(task.labels.names) != tuple(self.labels.names):
            raise DataError(
                f"{task.title} has the classes {list(task.labels)[:8]}, the model has "
                f"{list(self.labels)[:8]}; read the data with like=train (or build the model with "
                "labels=train.labels)."
            )
        found = torch.tensor(task.targets, dtype=torch.int64)
        _require_labels(task, found < 0)
        return found

    def adopt(self, task: Task) -> None:
        """Read columns and label values from now on as a training task does, numbers in its scale.

        Raises:
            DataError: if the task is of another kind or has other classes, or its numbers are all
                equal.
        """
        self.targets(self.read(task).select([]))
        if task.kind == "regression":
            self.scaling = Scaling.of(self.targets(task).tolist(), task.title)
        self.task = task.select([])

    def tokenize(self, task: Task) -> Encoded:
        """Return the token ids of a task's prompts, and how many were cut."""
        return self.preprocessor.tokenize(task)

    @property
    def max_length(self) -> int:
        """How many tokens of a prompt are read at most."""
        limits = (getattr(self.tokenizer, "model_max_length", None), self.backbone.positions)
        return min(self.recipe.prompt.max_length, *(n for n in limits if n))

    def encode(self, task: Task) -> Encoded:
        """Return the token ids of a task's prompts, warning of those that are cut."""
        return self.preprocessor.encode(task)

    def reader(self) -> Reader:
        """Return what feeds encoded texts to the backbone."""
        pad = self.tokenizer.pad_token_id
        return Reader(self.backbone, 0 if pad is None else pad, self.cache)

    def new_cache(self) -> PrefixCache | None:
        """Return an empty cache for the frozen layers; None where there are none, or it is off.

        It is for layers that are cut over processes, too: all have to run the same passes, and
        what is missing differs.
        """
        config = self.recipe.cache
        if config.prefix == "off" or not self.backbone.splits or self.backbone.sharded:
            return None
        identity = f"{self.source.fingerprint}|{self.backbone.first_layer}|{self.backbone.dtype}"
        return PrefixCache(identity, max_gb=config.max_gb, max_disk_gb=config.max_disk_gb)

    def mask(self, task: Task) -> Tensor | None:
        """Return which classes exist for each example ``(N, K)``; None where all do."""
        return self.preprocessor.mask(task)

    def features(
        self, texts: Texts, batch_size: int = 32, *, progress: Progress = silent
    ) -> Tensor:
        """Return pooled features, one backbone pass per text.

        Args:
            texts: N texts, pairs, rows or a task.
            batch_size: texts in a pass; it does not change the result beyond rounding.
            progress: how to report.

        Returns:
            Features ``(N, D)`` in fp32, on the CPU.
        """
        return self._pooled(self.read(texts), batch_size, progress)

    def predict(
        self, texts: Texts, batch_size: int = 32, *, progress: Progress = silent
    ) -> Prediction | RegressionPrediction:
        """Predict with full uncertainty, one backbone pass per text.

        Args:
            texts: N texts, pairs, rows or a task.
            batch_size: texts in a pass; it does not change the result beyond rounding.
            progress: how to report.

        Returns:
            Labels, probabilities, entropies in nats and out-of-distribution scores, of a calibrated
            model sets and abstentions; for regression means and standard deviations.
        """
        task = self.read(texts)
        found = self.predict_features(self.observe(task, batch_size, progress), self.mask(task))
        if self.guarantees is None or isinstance(found, RegressionPrediction):
            return found
        return found.under(self.guarantees, uniforms(example.content for example in task))

    def observe(self, texts: Texts, batch_size: int = 32, progress: Progress = silent) -> Observed:
        """Return all that `predict_features` needs of texts: every backbone pass happens here.

        Features ``(N, D)`` where the adapter is a point (or ``predict.samples`` is 0), else what
        its random weights say of the logits.
        """
        task = self.read(texts)
        if not len(task):
            return self._pooled(task, batch_size, progress)
        return self.observe_encoded(self.encode(task), batch_size, progress)

    def observe_encoded(
        self, encoded: Encoded, batch_size: int = 32, progress: Progress = silent
    ) -> Observed:
        """Return what `observe` does, of encoded texts."""
        weights, reader = self.backbone.weights, self.reader()
        draws = 0 if weights is None else weights.count(self.recipe.predict.samples)
        if weights is None or draws == 0:
            return reader.features(encoded, batch_size, progress=progress)
        seed = self.recipe.seed
        return weights.observe(reader, self.head, encoded, draws, seed, batch_size, progress)

    def _pooled(self, task: Task, batch_size: int, progress: Progress) -> Tensor:
        if not len(task):
            return torch.empty(0, self.head.in_features)  # pyright: ignore
        return self.reader().features(self.encode(task), batch_size, progress=progress)

    def predict_features(
        self, observed: Observed, mask: Tensor | None = None
    ) -> Prediction | RegressionPrediction:
        """Predict from pooled features ``(N, D)``, or whatever `observe` returned.

        Without sets and abstentions: those take the texts too (`Prediction.under`).
        """
        return self.readout.predict(observed, mask)

    def save(self, path: Any) -> None:
        """Write the model as a PEFT adapter with its posterior beside it; see `bayestune.store`."""
        from bayestune.store import save

        save(self, path)

    def __repr__(self) -> str:
        return (
            f"BayesModel(method={self.method.name!r}, base={self.source.name!r}, "
            f"labels={len(self.labels)}, rank={self.recipe.adapter.rank})"
        )


def build(
    method: str | None = None,
    base: str | None = None,
    labels: Task | LabelSet | Iterable[str] | None = None,
    *,
    config: Recipe | Mapping[str, Any] | None = None,
    **overrides: Any,
) -> BayesModel:
    """Load a backbone, adapt it and give it the head of a method.

    Args:
        method: a name from ``bayestune methods``; the config's, else ``polar_vbll``.
        base: ``smollm2-135m``, a folder, a ``.gguf`` file or a Hub id.
        labels: the classes in order: a task (whose kind and columns are taken too), its labels or
            plain names.
        config: a recipe, or nested values laid over the method's defaults.
        **overrides: recipe keys by their short names (``rank=8``) or as sections
            (``train={"lr": 1e-3}``).

    Returns:
        A model whose adapter changes nothing yet.

    Raises:
        ConfigError: for an unknown method or key, or labels that are none.
        ModelError: if the backbone cannot be loaded or adapted.
    """
    layers: list[Mapping[str, Any]] = []
    if isinstance(config, Recipe):
        layers.append(to_mapping(config))
    elif config is not None:
        layers.append(config)
    layers.append(nest_sections(overrides))
    if base is not None:
        layers.append({"model": base})
    named = next((layer["method"] for layer in reversed(layers) if "method" in layer), None)
    if method is not None and isinstance(config, Recipe) and named not in (None, method):
        raise ConfigError(
            f"build is asked for {method!r} but the recipe is one of {named!r}: give one of them."
        )
    recipe = methods.recipe(method or named or "polar_vbll", *layers)
    return assemble(recipe, _as_task(labels))


def assemble(
    recipe: Recipe,
    task: Task,
    *,
    source: Source | None = None,
    dtype: str | None = None,
    bases: SharedBases | None = None,
) -> BayesModel:
    """Build the model of a recipe for a task; see `build`.

    Args:
        recipe: everything about it.
        task: its classes and columns.
        source: the backbone, where it is resolved already.
        dtype: of the frozen weights, instead of the recipe's.
        bases: backbones that are there, whose weights it may stand on.
    """
    method = methods.get(recipe.method)
    source = source or resolve(recipe.model, recipe.revision)
    recipe = replace(recipe, model=source.name)
    device = pick_device(recipe.device)
    precision = pick_dtype(dtype or recipe.dtype, device)
    tokenizer = load_tokenizer(source)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)  # the adapter's starting point
        if bases is None:
            base = load_base(source, task.outputs, device, precision, recipe.quantize)
            source = replace(source, weights=identity(base.transformer))
        else:
            base, source = bases.load(source, task.outputs, device, precision, recipe.quantize)
        backbone, head = method.build(base, source, tokenizer, task, recipe)
    return BayesModel(
        method=method,
        recipe=recipe,
        backbone=backbone,
        tokenizer=tokenizer,
        head=head.to(device),
        task=task.select([]),
        source=source,
    )


def _require_labels(task: Task, missing: Tensor) -> None:
    if missing.any():
        bad = task.examples[int(missing.nonzero()[0])]
        raise DataError(f"{task.title}: the row with id {bad.id!r} has no label.")


def _as_task(labels: Task | LabelSet | Iterable[str] | None) -> Task:
    if isinstance(labels, Task):
        task = labels
    else:
        if labels is None or isinstance(labels, str):
            raise ConfigError("build needs labels: a task, its labels or a list of class names.")
        if not isinstance(labels, LabelSet):
            names = [str(name) for name in labels]
            labels = LabelSet(tuple(names), tuple(names))
        task = Task("classification", (), labels)
    if task.kind != "regression" and len(task.labels) < 2:
        raise DataError(f"A classifier needs at least 2 classes; got {len(task.labels)}.")
    return task
