"""The command line: `python -m rm train | data | score | evaluate | serve | plan | demo`."""

import contextlib
import io
import logging
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Annotated, Any, Union

import tyro

from .commands.config_file import with_config
from .commands.data import DataArguments, data
from .commands.demo import DemoArguments, demo
from .commands.evaluate import EvaluateArguments, evaluate_command
from .commands.help import describe_command
from .commands.pipes import ReaderGone, outliving_readers
from .commands.plan import PlanArguments, plan_command
from .commands.score import ScoreArguments, score
from .commands.serve import ServeArguments, serve
from .commands.train import TrainArguments, train
from .commands.usage import check_command, check_usage
from .devices.program_cache import keep_compiled
from .errors import RmError
from .version import __version__

_ABOUT = """Train and use reward models. COMMAND --help shows the flags of a command that most people use, COMMAND
--help-all all of them. --version says which rm this is; --debug, with any command, shows the traceback of an error."""
_COMMANDS = {
    "train": (TrainArguments, train),
    "data": (DataArguments, data),
    "score": (ScoreArguments, score),
    "evaluate": (EvaluateArguments, evaluate_command),
    "serve": (ServeArguments, serve),
    "plan": (PlanArguments, plan_command),
    "demo": (DemoArguments, demo),
}
_PRINT = {"data", "plan"}  # and write nothing that is worth going on for once nobody reads
_HELP = {"-h", "--help", "--help-all"}
_KINDS = {name: kind for name, (kind, _) in _COMMANDS.items()}
_RUN: dict[type, Callable[[Any], int | None]] = dict(_COMMANDS.values())
_Command = Union[tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in _KINDS.items())]  # noqa: UP007


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0 when it ended well, 1 where a plan does not fit, 2 for what the user can mend.

    `--debug`, anywhere among the arguments, shows the traceback of any error. A command that only prints ends with 141,
    as by SIGPIPE, where nobody reads on.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    prints = not given or given[0] not in _KINDS or given[0] in _PRINT or bool(_HELP & set(given))
    try:
        with outliving_readers(ends=prints):
            return _dispatch(given, debug=debug)
    except ReaderGone:
        return 128 + 13


def _dispatch(given: list[str], *, debug: bool) -> int:
    if "--version" in given:
        print(f"rm {__version__}, jax {version('jax')}, equinox {version('equinox')}, Python {sys.version.split()[0]}")
        return 0
    try:
        if given and not given[0].startswith("-") and _HELP & set(given):
            check_command(given[0], _KINDS)
            print(describe_command(given[0], _KINDS[given[0]], everything="--help-all" in given))
            sys.exit(0)
        given = ["--help" if each == "--help-all" else each for each in given]
        given, said = with_config(given, _KINDS)
        check_usage(given, _KINDS)
        args = _parse(given)
        print(*said, sep="\n", end="\n" if said else "", flush=True)
        keep_compiled()
        return _RUN[type(args)](args) or 0
    except (RmError, OSError) as error:  # a disk that is full, or a file that may not be read
        if debug:
            raise
        print(f"rm: {error if isinstance(error, RmError) else _describe(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rm: interrupted", file=sys.stderr)
        return 130


def _describe(error: OSError) -> str:
    return ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)


def _parse(argv: Sequence[str]) -> Any:
    usage = io.StringIO()
    try:
        with contextlib.redirect_stderr(usage):
            options: Any = {"prog": "python -m rm", "description": _ABOUT, "config": (tyro.conf.OmitArgPrefixes,)}
            return tyro.cli(_Command, args=argv, **options)  # pyright: ignore
    except SystemExit as stop:
        if stop.code:
            raise RmError(_one_line(usage.getvalue())) from None
        raise


def _one_line(box: str) -> str:
    """The words of the box that tyro draws around a usage error."""
    lines = [re.sub(r"[^\x20-\x7e]|-{4,}", " ", line).strip() for line in box.splitlines()]
    _, *words = (" ".join(line.split()) for line in lines if line)  # the first is the title of the box
    return "; ".join(words)


def quiet_libraries() -> None:
    """Keeps what Orbax logs and raises in threads, at length, off stderr: it becomes one line there."""
    usual = sys.unraisablehook
    sys.unraisablehook = lambda found: None if "loop is closed" in str(found.exc_value) else usual(found)
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


if __name__ == "__main__":
    if "--debug" not in sys.argv:
        quiet_libraries()
    sys.exit(main())
