"""Progress of a run: a bar on terminals and in notebooks, plain lines elsewhere."""

import sys
from collections.abc import Mapping

import jax

from ..devices.processes import leads


def warn(text: str) -> None:
    """A line on stderr, whoever wants quiet; of several processes the one that leads says it."""
    if leads():
        print(f"rm: {text}", file=sys.stderr, flush=True)


def print_once(text: str, *, quiet: bool = False) -> None:
    """Prints a line in the process that leads, unless `quiet`."""
    if leads() and not quiet:
        print(text, flush=True)


def peak_memory() -> str:
    """What the first device has held at most, where it says so, else this process, on the host; empty if unknown."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return f"{stats['peak_bytes_in_use'] / 1e9:.1f} GB"
    try:
        import resource
    except ImportError:  # on Windows
        return ""
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB"


class Reporter:
    """A bar on a terminal and in a notebook, plain lines elsewhere; where `quiet`, nothing but warnings."""

    def __init__(self, steps: int, *, done: int = 0, quiet: bool = False):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._steps, self._quiet = steps, quiet
        self._console = Console(file=sys.stdout, quiet=quiet or not leads())
        self._bar, self._cell = None, None
        if (self._console.is_terminal or self._console.is_jupyter) and not self._console.quiet:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("compiling …", total=steps, completed=done)
        self._speed = ""

    def __enter__(self) -> "Reporter":
        if self._bar and self._console.is_jupyter:
            from IPython.display import display  # rich's own way there needs ipywidgets

            self._cell = display(self._bar, display_id=True)
        elif self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._cell:
            self._cell.update(self._bar)
        elif self._bar:
            self._bar.stop()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Moves the bar; the first loss is shown beside ln 2, where a fresh head should begin."""
        if step == 1:
            self.print(f"first loss {metrics['loss']:.4f} (ln 2 = 0.6931, where centering is off)")
        if self._bar:
            text = f"loss {metrics['loss']:.4f}  accuracy {metrics['accuracy']:.3f}{self._speed}"
            self._bar.update(self._task, completed=step, description=text)

    def line(self, entry: Mapping[str, float]) -> None:
        """Shows a line of metrics.jsonl."""
        place = f"step {entry['step']}/{self._steps}"
        if "pairs_per_second" in entry:
            self._speed = f"  {entry['pairs_per_second']:.1f} pairs/s  {peak_memory()}"
            if self._cell:
                self._cell.update(self._bar)  # at every line only, for each is a message to the notebook
            if not self._bar:
                shown = "  ".join(f"{name} {entry[name]:.{digits}f}" for name, digits in _SHOWN.items())
                self.print(f"{place}  {shown}{self._speed}")
        elif "rows" in entry:
            say = warn if self._quiet else self.print
            say(f"{place}  skipped: loss {entry['loss']}, grad_norm {entry['grad_norm']}")
        else:
            shown = [f"{name} {value:.4f}" for name, value in entry.items() if name.startswith("eval_")]
            self.print(f"{place}  " + "  ".join(shown))

    def print(self, text: str) -> None:
        """A line of plain text."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


_SHOWN = {"loss": 4, "accuracy": 3, "margin": 3}  # with their digits
