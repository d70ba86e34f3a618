"""The command line. One file per verb, imported when that verb is used.

`main` is the console script. It alone turns exceptions into words and exit codes; a verb raises a
`FlowkitError`, or returns its exit code (None is 0).
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import platform
import sys
import traceback
from collections.abc import Sequence

import click

from flowkit import __version__
from flowkit.cli import terminal
from flowkit.errors import FlowkitError, LocalProtocolError, TopologyError

VERBS = {
    "up": "Run a topology until its stream ends or Ctrl-C.",
    "ls": "List the projects that run, and those that have run.",
    "ps": "Show how the replicas of a running project are.",
    "top": "Watch a running project live, and change it.",
    "logs": "Show what replicas print and have printed.",
    "events": "Show what happens to a project: started, died, scaled ...",
    "scale": "Give nodes of a running project more replicas, or fewer.",
    "restart": "Restart the replicas of a node, one after the other.",
    "stop": "Stop a node of a running project (the project: down).",
    "start": "Start a node that was stopped (a project: up).",
    "reload": "Change a running project to fit its file, and lose nothing.",
    "tap": "Show live messages of a channel, without disturbing them.",
    "down": "End a running project: drain it, then confirm.",
    "check": "Find every problem of topology files before anything starts.",
    "graph": "Draw a topology as text, Mermaid or Graphviz.",
    "schema": "Print the JSON Schema of topology files, for editors.",
    "nodes": "List node classes, their channels and settings.",
    "dead-letters": "List, show, replay or drop messages that were given up.",
    "pipe": "Pass messages from one end to another, through a function.",
    "init": "Create a project that runs and passes its own test.",
    "doctor": "Check that this machine can run topologies.",
    "bench": "Measure flowkit beside other ways, on this machine.",
}
"""Verb to short help. `flowkit --help` shows these without importing any verb."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says where nothing more can be written."""

EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
"""What a shell reports for a program that SIGPIPE ended, which is what the reader expects."""


class Verbs(click.Group):
    """A group whose commands are modules `flowkit.cli.VERB`, each with a `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"flowkit.cli.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(EXIT_USAGE)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in VERBS and not name.startswith("-"):
            close = difflib.get_close_matches(name, VERBS, n=1)
            guess = f"did you mean '{close[0]}'?" if close else f"verbs are {', '.join(VERBS)}"
            raise click.UsageError(f"no verb '{name}'; {guess}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, subcommand_metavar="VERB [ARGS]...", add_help_option=True)
@click.version_option(__version__, prog_name="flowkit", message="%(prog)s %(version)s")
def cli() -> None:
    """Stream processing on the Tornado event loop.

    `flowkit VERB --help` says more about each verb.
    """


cli.context_settings = {"help_option_names": ["-h", "--help"]}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `flowkit` with `argv` (default: the arguments of this process); return the exit code.

    Raises nothing but what a verb raises as SystemExit. The caller hands the code to `sys.exit`.
    """
    terminal.open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        terminal.prepare(stream)
    try:
        code = _run(sys.argv[1:] if argv is None else list(argv))
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a reader that has gone can be forgiven
        return code
    except BrokenPipeError:
        if not terminal.reader_has_gone():
            return _report_bug()
        terminal.discard_output()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.errno not in FULL:
            return _report_bug()
        terminal.discard_output()
        _say(f"cannot write {error.filename or 'the output'}: {error.strerror}", "")
        return EXIT_USAGE


def _run(args: list[str]) -> int:
    try:
        with cli.make_context("flowkit", args) as context:
            context.color = terminal.use_colour(sys.stdout)
            code = cli.invoke(context)
            return code if isinstance(code, int) else 0
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        _report_usage(error)
        return EXIT_USAGE
    except TopologyError as error:
        from flowkit.cli.problems import render

        click.echo(render(error.problems, terminal.use_colour(sys.stderr)), err=True, color=True)
        return error.exit_code
    except LocalProtocolError:
        return _report_bug()
    except FlowkitError as error:
        _report(error)
        return error.exit_code
    except OSError as error:
        if isinstance(error, BrokenPipeError) or error.errno in FULL:
            raise
        return _report_bug()
    except Exception:
        return _report_bug()


def _report_usage(error: click.ClickException) -> None:
    """What was typed is wrong: how it is used, what is wrong, and where there is more."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        click.echo(context.get_usage(), err=True)
    _say(error.format_message(), f"{context.command_path} --help" if context else "")


def _report(error: FlowkitError) -> None:
    """One clear message: what happened, and what to do next where the error knows."""
    hint = getattr(error, "hint", "")
    _say(str(error), hint if hint not in str(error) else "")


def _say(text: str, hint: str) -> None:
    colour = terminal.use_colour(sys.stderr)
    click.echo(click.style("error:", fg="red", bold=True) + f" {text}", err=True, color=colour)
    if hint:
        click.echo(click.style("hint:", fg="cyan") + f" {hint}", err=True, color=colour)


def _report_bug() -> int:
    """Show the exception being handled as what it is: a fault of flowkit, not of its user."""
    traceback.print_exc()
    click.echo(
        f"error: this is a bug in flowkit {__version__} (Python {platform.python_version()}, "
        f"{platform.system()} {os.uname().machine if hasattr(os, 'uname') else ''}); "
        "please report it with the lines above",
        err=True,
    )
    return EXIT_BUG
