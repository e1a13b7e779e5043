"""Models and runs on disk."""

from __future__ import annotations

from bayestune.store.card import CARD, read_card, write_card
from bayestune.store.guarantees import GUARANTEES, save_guarantees
from bayestune.store.manifest import UNFINISHED
from bayestune.store.measured import read_measured, write_measured
from bayestune.store.model import fill, load, model_folder, save, save_tokenizer
from bayestune.store.sidecar import SIDECAR, Probe, Sidecar, open_sidecar, probe, save_sidecar
from bayestune.store.start import recipe_of, start_from
from bayestune.store.update import save_update

__all__ = [
    "CARD",
    "GUARANTEES",
    "SIDECAR",
    "UNFINISHED",
    "Probe",
    "Sidecar",
    "fill",
    "load",
    "model_folder",
    "open_sidecar",
    "probe",
    "read_card",
    "read_measured",
    "recipe_of",
    "save",
    "save_guarantees",
    "save_sidecar",
    "save_tokenizer",
    "save_update",
    "start_from",
    "write_card",
    "write_measured",
]
