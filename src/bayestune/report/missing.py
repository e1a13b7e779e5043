"""What a benchmark was asked for and does not hold, in sentences."""

from __future__ import annotations

from bayestune.bench import Key, Plan, is_written, read


def missing(plan: Plan, task: str) -> tuple[str, ...]:
    """Return a sentence about every row of a task that lacks trainings or had one broken off."""
    found: list[str] = []
    for row in plan.rows:
        rates, rate = plan.suite.rates_of(task, row), plan.rate(task, row)
        tried = rates if isinstance(rates, tuple) else ()
        keys = {Key(task, row, 0, lr) for lr in tried}
        if rate is not None:
            keys |= {Key(task, row, seed, rate) for seed in range(plan.seeds)}
        cells = [read(key, plan.out) for key in sorted(keys) if is_written(key, plan.out)]
        found += [
            f"{row}, seed {cell.key.seed}, learning rate {cell.key.lr:g} broke off: {cell.error}"
            for cell in cells
            if cell.error
        ]
        absent = sorted(keys - {cell.key for cell in cells})
        if rate is not None:
            if seeds := [str(key.seed) for key in absent]:
                found.append(f"{row}: {_count('seed', seeds)} not trained yet.")
        elif isinstance(rates, str):
            found.append(f"{row}: not trained yet; {rates} has no learning rate to give it.")
        elif absent:
            untried = [f"{key.lr:g}" for key in absent]
            found.append(
                f"{row}: left out until every learning rate is tried; "
                f"{_count('rate', untried)} missing."
            )
        else:
            found.append(f"{row}: left out, it broke off at every learning rate.")
    return tuple(found)


def _count(noun: str, names: list[str]) -> str:
    several = len(names) > 1
    return f"{noun}{'s' if several else ''} {', '.join(names)} {'are' if several else 'is'}"
