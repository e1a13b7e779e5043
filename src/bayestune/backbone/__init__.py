"""Backbones: where they come from, how they are adapted, and their pooled forward pass."""

from __future__ import annotations

from bayestune.backbone.assemble import (
    Base,
    adapt,
    load_base,
    load_tokenizer,
    outline,
    replace_head,
)
from bayestune.backbone.backbone import Backbone
from bayestune.backbone.cache import PrefixCache
from bayestune.backbone.files import base_file, base_tensors
from bayestune.backbone.identity import identity
from bayestune.backbone.layers import layer_stack, parse_layers
from bayestune.backbone.output import output_rows
from bayestune.backbone.place import pick_device, pick_dtype
from bayestune.backbone.reader import Reader
from bayestune.backbone.shard import shard
from bayestune.backbone.shared import SharedBases
from bayestune.backbone.source import EMBEDDED, Source, resolve

__all__ = [
    "EMBEDDED",
    "Backbone",
    "Base",
    "PrefixCache",
    "Reader",
    "SharedBases",
    "Source",
    "adapt",
    "base_file",
    "base_tensors",
    "identity",
    "layer_stack",
    "load_base",
    "load_tokenizer",
    "outline",
    "output_rows",
    "parse_layers",
    "pick_device",
    "pick_dtype",
    "replace_head",
    "resolve",
    "shard",
]
