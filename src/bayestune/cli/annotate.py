"""YAML with comments: taken from one text, written beside the values of another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml


class Note(NamedTuple):
    """Comments of one key: the lines above it and what follows it on its line."""

    above: tuple[str, ...] = ()
    beside: str = ""


def comments(text: str) -> dict[str, Note]:
    """Return the comments of a recipe by dotted key.

    Args:
        text: YAML of nested mappings. A comment belongs to the key on its line, or to the key
            directly below it; the file's header, set off by a blank line, belongs to none.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    found: dict[str, Note] = {}
    if isinstance(root, yaml.MappingNode):
        _collect(root, "", text.splitlines(), found)
    return found


def _collect(node: yaml.MappingNode, prefix: str, lines: list[str], out: dict[str, Note]) -> None:
    for key, value in node.value:
        section = isinstance(value, yaml.MappingNode) and value.value
        mark = key.end_mark if section else value.end_mark
        rest = lines[mark.line][mark.column :] if mark.line < len(lines) else ""
        rest = rest.lstrip(": ") if section else rest.lstrip()
        above: list[str] = []
        row = key.start_mark.line - 1
        while row >= 0 and lines[row].lstrip().startswith("#"):
            above.insert(0, lines[row].strip())
            row -= 1
        name = f"{prefix}{key.value}"
        out[name] = Note(tuple(above), rest if rest.startswith("#") else "")
        if section:
            _collect(value, f"{name}.", lines, out)


def write(values: Mapping[str, Any], notes: Mapping[str, Note]) -> str:
    """Return nested values as YAML, each key with its comments.

    Args:
        values: nested mapping of plain values.
        notes: comments by dotted key.
    """
    return "\n".join(_lines(values, notes, "", "")).strip("\n")


def _lines(
    values: Mapping[str, Any], notes: Mapping[str, Note], prefix: str, indent: str
) -> list[str]:
    out: list[str] = []
    for key, value in values.items():
        note = notes.get(f"{prefix}{key}", Note())
        section = isinstance(value, Mapping) and value
        if section and not indent:
            out.append("")
        out += [indent + line for line in note.above]
        head = f"{indent}{key}:" if section else f"{indent}{key}: {_scalar(value)}"
        out.append(f"{head}  {note.beside}".rstrip())
        if section:
            out += _lines(value, notes, f"{prefix}{key}.", indent + "  ")
    return out


def _scalar(value: Any) -> str:
    if isinstance(value, str) and not value.isprintable():
        if value.replace("\n", "").replace("\t", "").isprintable():
            return json.dumps(value, ensure_ascii=False)  # one line, and valid YAML
        # Written as they are, some would be read as the end of a line.
        return yaml.safe_dump(value, width=10**6, default_style='"').strip()
    text = yaml.safe_dump(value, width=10**6, allow_unicode=True, default_flow_style=True)
    return text.removesuffix("...\n").strip()
