"""Makes an adapter method that lives outside PEFT's tree known to PEFT.

PEFT finds a method through three dictionaries keyed by `PeftType`, a closed enumeration of strings
that hashes like the string itself. A string that also has the enumeration's ``value`` and ``name``
is therefore a full key: nothing of PEFT is patched.
"""

from __future__ import annotations

from typing import Any

from peft import PeftConfig, PeftType
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner

from bayestune.errors import ModelError

__all__ = ["MethodKey", "method_key", "register"]


class MethodKey(str):
    """The name of an adapter method, usable wherever PEFT expects a `PeftType` member."""

    __slots__ = ()

    @property
    def value(self) -> str:
        """The plain name, as in ``adapter_config.json``."""
        return str.__str__(self)

    @property
    def name(self) -> str:
        """The plain name; an enumeration's members are spelt like their values here."""
        return str.__str__(self)

    def __str__(self) -> str:
        # PEFT's status reports cut the text at the dot that a printed enumeration member has.
        return f"PeftType.{self.value}"


def method_key(name: str) -> MethodKey | PeftType:
    """Return the key of an adapter method: PEFT's own member where it has one.

    Args:
        name: the method in capitals, such as ``"POLAR"``.

    Returns:
        A string equal to ``name`` that has ``value`` and ``name`` attributes.
    """
    return PeftType.__members__.get(name) or MethodKey(name)


def register(name: str, config: type[PeftConfig], tuner: type[BaseTuner]) -> None:
    """Register an adapter method with PEFT; a second call with the same classes does nothing.

    Args:
        name: the method in capitals, as written to ``adapter_config.json``.
        config: its `PeftConfig` dataclass.
        tuner: its `BaseTuner`, whose ``prefix`` begins the names of all adapter parameters: one of
            its own, or that of the tuner it extends.

    Raises:
        ModelError: the name or the prefix already belongs to another method.
    """
    key = method_key(name)
    # PEFT declares these for its own enumeration; any string with the same hash is a key.
    configs: dict[Any, Any] = PEFT_TYPE_TO_CONFIG_MAPPING
    tuners: dict[Any, Any] = PEFT_TYPE_TO_TUNER_MAPPING
    prefixes: dict[Any, str] = PEFT_TYPE_TO_PREFIX_MAPPING
    known = configs.get(key, config)
    if known is not config:
        raise ModelError(
            f"PEFT already has a method {name!r} ({known.__module__}.{known.__qualname__}), so "
            f"{config.__module__}.{config.__qualname__} cannot take the name. Install a PEFT "
            "version within bayestune's supported range."
        )
    for other, prefix in prefixes.items():
        # Who extends another method's tuner keeps its names.
        own = any(issubclass(tuner, tuners[o]) for o, p in prefixes.items() if p == tuner.prefix)
        if prefix == tuner.prefix and other != key and not own:
            raise ModelError(
                f"The parameter prefix {prefix!r} of {name!r} belongs to PEFT's {other.value!r}. "
                "Choose another prefix."
            )
    configs[key], tuners[key], prefixes[key] = config, tuner, tuner.prefix
