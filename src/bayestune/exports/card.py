"""README.md of an export: how it is loaded, what to feed it, what it is not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from bayestune.exports.prompt import prompt_section
from bayestune.model import BayesModel
from bayestune.version import __version__

_CARD = """\
---
base_model: {base}
library_name: {library}
tags:
- bayestune
- {method}
---

# {title}

{summary}, exported by [bayestune](https://pypi.org/project/bayestune) {version} as `{form}`.
`PATH` stands for this folder.
{several}
{usage}
## What to feed it

{prompt}
## What this is

{account}

`export.json` says the same with versions and checksums.
"""


def card(
    model: BayesModel,
    form: str,
    library: str,
    usage: str,
    account: Mapping[str, Sequence[str]],
    places: Sequence[str],
) -> str:
    """Return the card of an export, in Markdown.

    Args:
        model: what was exported.
        form: its name.
        library: what loads it.
        usage: how.
        account: of `bayestune.exports.account`.
        places: the folders of its draws, or the one folder, under ``PATH``.
    """
    several = ""
    if len(places) > 1:
        several = (
            f"\n{places[0]} to {places[-1]} are draws of one posterior: the prediction is the mean "
            "of their probabilities, never of their logits.\n"
        )
    words = {"kept": "Kept", "left_out": "Left out"}
    lines = [f"- {words[key]}: {line}." for key in words for line in account[key]]
    return _CARD.format(
        base=json.dumps(model.source.name, ensure_ascii=False),
        library=library,
        method=model.method.name,
        title=f"{model.method.name} on {model.source.name}",
        summary=model.method.summary,
        version=__version__,
        form=form,
        several=several,
        usage=usage,
        prompt=prompt_section(model),
        account="\n".join(lines),
    )
