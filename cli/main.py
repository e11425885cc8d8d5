"""The root command and the one place where errors become exit codes."""

from __future__ import annotations

import os
import signal
import sys

import typer

from . import (
    attend,
    demo,
    doctor,
    embed,
    eval,
    export,
    index,
    inspect,
    merge,
    order,
    report,
    shard,
    subset,
    train,
    watch,
    withdraw,
)
from .shared import print_error, print_notice

app = typer.Typer(
    name="dinowds",
    help="From cohort tarballs to DINO-pretrained Vision Transformers, on WebDataset shards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(shard.shard)
app.command()(inspect.inspect)
app.command()(merge.merge)
app.command()(withdraw.withdraw)
app.command()(index.index)
app.command()(order.order)
app.command()(subset.subset)
app.add_typer(train.app, name="train")
app.command()(watch.watch)
app.add_typer(embed.app, name="embed")
app.add_typer(eval.app, name="eval")
app.command()(attend.attend)
app.command()(export.export)
app.command()(report.report)
app.command()(demo.demo)
app.command()(doctor.doctor)


def run() -> None:
    """Entry point: 0 done, 1 failure, 2 usage, 75 stopped early on a signal: run again to go on."""
    from dinowds.errors import DinowdsError, Interrupted, StoppedBySignal

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's way to say Ctrl-C
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of a lost connection it warns with the frames of its calls
    try:
        app()
    except (StoppedBySignal, Interrupted) as stop:
        print_notice(str(stop))
        sys.exit(stop.exit_code)
    except DinowdsError as error:
        print_error(str(error))
        sys.exit(error.exit_code)
    except MemoryError:
        print_error(
            "the memory of this host is full, or this process may take no more; lower the number of workers, or ask "
            "the batch system for more"
        )
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print_error(f"{place}{error.strerror or error}")
        sys.exit(1)
