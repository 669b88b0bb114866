"""How large the house is: files, lines, functions, public names, and how long `import rm` takes.

python benchmarks/house.py [CHECKOUT …]

Prints one column for each checkout, so that a change can be compared with what was there before it.
"""

import ast
import statistics
import subprocess
import sys
import time
from pathlib import Path

FOLDERS = ("rm", "tests", "benchmarks")


def function_lengths(files: list[Path]) -> list[tuple[int, str]]:
    """Lines of every function, docstring and decorators left out, with its place."""
    found = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
                found.append((node.end_lineno - body[0].lineno + 1, f"{path.name}: {node.name}"))  # pyright: ignore
    return sorted(found)


def import_seconds(root: Path) -> float:
    """The median of five processes that import the package."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import rm"], cwd=root, check=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def folders(root: Path) -> list[Path]:
    return sorted({path.parent for path in (root / "rm").rglob("*.py")} - {root / "rm"})


def measure(root: Path) -> dict[str, str]:
    rows = {"rm: files at the top, folders": f"{len(list((root / 'rm').glob('*.py')))}, {len(folders(root))}"}
    largest = max(folders(root), key=lambda folder: len(list(folder.glob("*.py"))))
    rows["rm: most files of a folder"] = f"{len(list(largest.glob('*.py')))} ({largest.name})"
    for folder in FOLDERS:
        lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (root / folder).rglob("*.py")}
        rows[f"{folder}: files, lines"] = f"{len(lines)}, {sum(lines.values())}"
        longest = max(lines, key=lines.__getitem__)
        rows[f"{folder}: lines of a file, median, longest"] = (
            f"{statistics.median(lines.values()):g}, {lines[longest]} ({longest.name})"
        )
        functions = function_lengths(list(lines))
        length, place = functions[-1]
        median = statistics.median(length for length, _ in functions)
        rows[f"{folder}: lines of a function, median, longest"] = f"{median:g}, {length} ({place})"
        rows[f"{folder}: functions over 30 lines"] = str(sum(length > 30 for length, _ in functions))
    public = "import rm; print(len(rm.__all__))"
    rows["public names"] = subprocess.run(
        [sys.executable, "-c", public], cwd=root, check=True, capture_output=True, text=True
    ).stdout.strip()
    rows["import rm, seconds"] = f"{import_seconds(root):.2f}"
    return rows


def main() -> None:
    roots = [Path(text).resolve() for text in sys.argv[1:]] or [Path(__file__).resolve().parents[1]]
    columns = [measure(root) for root in roots]
    print("|".join(["", "", *(root.name for root in roots), ""]))
    print("|".join(["", "---", *("---" for _ in roots), ""]))
    for name in columns[0]:
        print("|".join(["", name, *(column[name] for column in columns), ""]))


if __name__ == "__main__":
    main()
