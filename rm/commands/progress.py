"""Progress of a run: a bar on terminals and in notebooks, plain lines elsewhere."""

import sys
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, TextIO

import jax

from ..devices.processes import leads

_SHOWN = {"loss": 4, "accuracy": 3, "margin": 3}  # metrics of a plain line, with their digits


def warn(text: str) -> None:
    """Prints a line on stderr, also where quiet is wanted, in the process that leads."""
    _print(f"rm: {text}", sys.stderr)


def print_once(text: str, *, quiet: bool = False) -> None:
    """Prints a line in the process that leads, unless `quiet`."""
    if not quiet:
        _print(text, sys.stdout)


def _print(text: str, file: TextIO) -> None:
    """Prints a line at once, above the bar where there is one, in the process that leads."""
    from tqdm import tqdm

    if leads():
        with tqdm.external_write_mode(file):
            print(text, file=file, flush=True)


def peak_memory() -> str:
    """The most memory that the first device has held where it says so, else this process; empty if unknown."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return f"{stats['peak_bytes_in_use'] / 1e9:.1f} GB"
    try:
        import resource
    except ImportError:  # on Windows
        return ""
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB"


class Reporter(AbstractContextManager):
    """A bar on a terminal and in a notebook, plain lines elsewhere; where `quiet`, nothing but warnings."""

    def __init__(self, steps: int, *, done: int = 0, quiet: bool = False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without ipywidgets, notebooks show the bar as text
            from tqdm.auto import tqdm

        self._steps, self._quiet, self._speed = steps, quiet, ""
        self._bar = tqdm(
            desc="compiling",
            total=steps,
            initial=done,
            file=sys.stdout,
            disable=quiet or not leads() or not (sys.stdout.isatty() or "ipykernel" in sys.modules),
            dynamic_ncols=True,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Moves the bar; the first loss is shown beside ln 2, where a fresh head should begin."""
        if step == 1:
            self.print(f"first loss {metrics['loss']:.4f} (ln 2 = 0.6931, where centering is off)")
        self._bar.set_description_str("training", refresh=False)
        text = f"loss {metrics['loss']:.4f}, accuracy {metrics['accuracy']:.3f}{self._speed}"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(step - self._bar.n)

    def line(self, entry: Mapping[str, Any]) -> None:
        """Shows a line of metrics.jsonl."""
        place = f"step {entry['step']}/{self._steps}"
        if "pairs_per_second" in entry:
            speed = f"{entry['pairs_per_second']:.1f} pairs/s", peak_memory()
            self._speed = "".join(f", {figure}" for figure in speed if figure)
            if self._bar.disable:
                shown = "  ".join(f"{name} {entry[name]:.{digits}f}" for name, digits in _SHOWN.items())
                self.print(f"{place}  {shown}{self._speed.replace(', ', '  ')}")
        elif "warning" in entry:
            warn(f"{place}: {entry['warning']}")
        elif "rows" in entry:
            say = warn if self._quiet else self.print
            say(f"{place}  skipped: loss {entry['loss']}, grad_norm {entry['grad_norm']}")
        else:
            shown = [f"{name} {value:.4f}" for name, value in entry.items() if name.startswith("eval_")]
            self.print(f"{place}  " + "  ".join(shown))

    def print(self, text: str) -> None:
        """Prints a line of plain text, unless `quiet`."""
        print_once(text, quiet=self._quiet)
