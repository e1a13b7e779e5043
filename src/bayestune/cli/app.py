"""The ``bayestune`` command."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bayestune.cli import (
    bench,
    calibrate,
    config,
    demo,
    doctor,
    eval,
    export,
    methods,
    predict,
    report,
    serve,
    train,
    update,
)
from bayestune.cli.console import logging_to_stderr
from bayestune.cli.options import Debug
from bayestune.cli.reporting import reporting
from bayestune.cli.stopping import terminable
from bayestune.version import __version__


class Verbs(TyperGroup):
    """A group whose verbs report their errors as one sentence and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        """Run a verb."""
        with logging_to_stderr(), reporting(ctx), terminable():
            return super().invoke(ctx)


app = typer.Typer(
    name="bayestune",
    cls=Verbs,
    no_args_is_help=True,
    rich_markup_mode=None,  # brackets in help texts are meant, and plain help is faster
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"bayestune {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Fine-tune language models that know when they do not know."""


app.command("train", short_help="Fine-tune a model.")(train.train)
app.command("eval", short_help="Measure accuracy, calibration and OOD detection.")(eval.evaluate)
app.command("calibrate", short_help="Guarantee sets and abstention.")(calibrate.calibrate)
app.command("update", short_help="Learn from new labelled rows, without training.")(update.update)
app.command("predict", short_help="Predict labels with their uncertainty.")(predict.predict)
app.command("serve", short_help="Serve predictions over HTTP.")(serve.serve)
app.command("export", short_help="Write a run for other software.")(export.export)
app.command("bench", short_help="Compare methods on tasks.")(bench.bench)
app.command("report", short_help="Write what a benchmark found.")(report.report)
app.command("methods", short_help="List the methods.")(methods.methods)
app.command("demo", short_help="Compare PoLAR-VBLL with plain LoRA on quick-start data.")(demo.demo)
app.command("doctor", short_help="Check this machine.")(doctor.doctor)
app.add_typer(config.app, name="config")


def main() -> None:
    """Run the command line."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(encoding="utf-8")  # JSON is UTF-8 whatever the locale says
    app(prog_name="bayestune")
