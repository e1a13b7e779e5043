"""Families of bad input, each with what must hold whatever it is given."""

from reliability.cases.bases import Bases
from reliability.cases.bodies import Bodies
from reliability.cases.folders import Folders
from reliability.cases.recipes import Overrides, Yaml
from reliability.cases.rows import Csv, Jsonl
from reliability.cases.verbs import Verbs

FAMILIES = (Jsonl, Csv, Yaml, Overrides, Folders, Bases, Bodies, Verbs)

__all__ = ["FAMILIES"]
