"""Put the verbs together; turn errors into one clear line and an exit code."""

from __future__ import annotations

import errno
import io
import logging
import sys
from typing import Annotated

import typer

from ..errors import StapesError
from . import ablate, bench, convert, data, demo, evaluate, plan, report, run, talk

_HELP = """Build, train, compress, measure and compare light-weight audio language models.

Example: `stapes run recipes/tiny.yaml`
"""

_INTERRUPTED = 130

# Of the verbs that go on where they were stopped. `data prepare` does so for two corpora only, and makes no promise.
_KEPT = {
    ("run",): "finished steps are kept",
    ("ablate",): "finished steps are kept",
    ("eval",): "answers are kept",
    ("data", "synth"): "spoken sentences are kept",
}

app = typer.Typer(
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _verbs in (run, plan, ablate, data, convert, evaluate, bench, report, talk, demo):
    _verbs.register(app)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed_version

        typer.echo(installed_version("stapes"))
        raise typer.Exit


def main() -> None:
    """Run the program; exit 0 (done), 1 (failed), 2 (mistyped) or 130 (Ctrl-C); user errors show no traceback."""
    # It speaks when it is first imported, which peft does where it is installed, of kernels that nobody asked for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name need not be text; what cannot be written is then escaped, as on stderr.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except StapesError as error:
        _fail(str(error), error.exit_code)
    except SystemExit as end:
        # typer turns Ctrl-C into this code and says nothing.
        if end.code == _INTERRUPTED:
            _fail(f"interrupted{_what_is_kept(sys.argv[1:])}", _INTERRUPTED)
        raise
    except BrokenPipeError:
        # `stapes … | head`: the reader left, which is no error of ours.
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        # A full disk, a missing file or no permission is the machine's state; say which file and stop.
        where = f"{error.filename}: " if error.filename else ""
        hint = "; free some space and run the same command again" if error.errno == errno.ENOSPC else ""
        _fail(f"{where}{error.strerror or error}{hint}", 1)


def _what_is_kept(arguments: list[str]) -> str:
    """Say what an interrupted verb, the first one or two of the arguments, goes on from; nothing if it does not."""
    kept = _KEPT.get(tuple(arguments[:1])) or _KEPT.get(tuple(arguments[:2]))
    return f"; {kept}, and the same command goes on from there" if kept else ""


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
