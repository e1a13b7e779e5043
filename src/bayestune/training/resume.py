"""The state of a fit on disk, and how a session goes on from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from bayestune.config import to_mapping
from bayestune.errors import NumericsError, StoreError
from bayestune.files import recover, tidy, under
from bayestune.progress import Advance
from bayestune.training.checkpoint import (
    flatten,
    load_checkpoint,
    restore,
    rng_state,
    save_checkpoint,
    set_rng_state,
    trainable,
    unflatten,
)
from bayestune.training.choose import candidates
from bayestune.training.interrupts import held
from bayestune.training.loop import Loop, Meter
from bayestune.training.run import CHECKPOINT, RACE

if TYPE_CHECKING:
    from bayestune.training.session import Session

#: Tensors and JSON values of a checkpoint.
Found = tuple[dict[str, Tensor], dict[str, Any]]


def candidate(kappa: float) -> str:
    """Return the name of the state of a candidate for the KL weight."""
    return f"{RACE}/{kappa:g}"


def save_state(session: Session, loop: Loop, name: str) -> None:
    """Write all that the session needs to go on, where it writes anything."""
    if session.journal.out is None or not session.journal.writes:
        return
    tensors = {
        f"now.{k}": v for k, v in trainable(session.model.backbone, session.model.head).items()
    }
    tensors |= {f"best.{k}": v for k, v in session.best_tensors.items()}
    tensors |= rng_state(session.model.backbone.device)
    state: dict[str, Any] = {
        **loop.state(),
        "best": session.best,
        "member": session.member,
        "kappas": session.kappas,
        "history": session.history,
        "recipe": to_mapping(session.recipe),
        "facts": session.facts,
    }
    for part in ("adapter", "posterior"):
        flat, state[part] = flatten(part, getattr(loop, part).state_dict())
        tensors |= flat
    save_checkpoint(session.journal.out / name, tensors, state)


def interrupted(session: Session) -> dict[str, Found]:
    """Return the states that this run has reached, by name; none before the first epoch.

    Raises:
        StoreError: if the run is finished, damaged, or one of other data or another recipe.
    """
    out = session.journal.out
    if out is None:
        return {}
    tidy(out)
    found: dict[str, Found] = {}
    for name in (CHECKPOINT, *map(candidate, candidates(session.model))):
        recover(out / name)
        if (out / name).is_dir():
            found[name] = load_checkpoint(out / name)
    if not found and (out / "model").is_dir() and not session.journal.is_open:
        raise StoreError(f"{out} holds a finished run; there is nothing to resume.")
    for name, (_, state) in found.items():
        if _lasting(state["recipe"]) != _lasting(to_mapping(session.recipe)) or (
            state["facts"] != session.facts
        ):
            what = "recipe" if state["facts"] == session.facts else "data"
            raise StoreError(
                f"{out / name} belongs to a run with another {what}; resume with the same "
                "command, or start anew with --overwrite."
            )
    return found


def _lasting(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return what must not change of a recipe; a run that was stopped may go on by skipping."""
    train = {key: value for key, value in recipe["train"].items() if key != "nonfinite"}
    return {**recipe, "train": train}


def proceed(session: Session, tensors: dict[str, Tensor], state: dict[str, Any]) -> Loop:
    """Put a state back and return the loop that goes on from it."""
    # The step sizes follow from the head's feature energy, so its state comes first.
    restore(session.model.backbone, session.model.head, under("now.", tensors))
    session.kappa, session.kappas = state["kappa"], state["kappas"]
    loop = session.new_loop(session.kappa)
    session.best, session.best_tensors = state["best"], under("best.", tensors)
    session.history = state["history"]
    for name in ("adapter", "posterior"):
        getattr(loop, name).load_state_dict(unflatten(name, tensors, state[name]))
    loop.step, loop.epoch = state["step"], state["epoch"]
    loop.meter = Meter(**state.get("meter", {}))  # which earlier versions kept no part of
    set_rng_state(session.model.backbone.device, tensors)
    return loop


def run_epoch(session: Session, loop: Loop, advance: Advance, name: str) -> dict[str, float]:
    """Train to the end of the epoch; what ends it earlier finds the state after its last step.

    Args:
        session: the fit in progress.
        loop: its loop.
        advance: progress, by examples.
        name: of the state.

    Returns:
        Means over the epoch.

    Raises:
        NumericsError: see `Loop.run_epoch`.
    """
    with held() as signals:

        def after_step() -> None:
            if session.processes.any(signals.come):
                save_state(session, loop, name)
                session.processes.wait()
                signals.deliver()
                raise KeyboardInterrupt  # another of the processes was asked to end

        try:
            return loop.run_epoch(advance, after_step)
        except NumericsError as error:
            skips = loop.config.nonfinite == "skip"  # then no state is worth going on from
            if (out := session.journal.out) is None or skips or not loop.is_finite:
                raise
            save_state(session, loop, name)
            raise NumericsError(
                f"{error} {out / name} holds the state before it: --resume with "
                "train.nonfinite=skip goes on without such batches."
            ) from error
