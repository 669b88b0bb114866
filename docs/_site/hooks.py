"""Steps of `mkdocs build`: files outside docs/ become pages, names become links, figures take the page's colour."""

import os
import posixpath
import re
import tempfile
from pathlib import Path

from formulas import typeset  # beside this file, where mkdocs looks while it loads a hook
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {  # files outside docs/ and the pages that they are
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/LOG.md": "log.md",
    "benchmarks/README.md": "scripts.md",
    "benchmarks/scale.md": "scale.md",
}
LINK = re.compile(r"(?<=\]\()(?![a-z]+:)([^)#\s]+)(?=[)#])")
CODE = re.compile(r"(^ *(`{3,}).*?^ *\2 *$)|(\[[^\]\n]*\]\([^)\n]*\))|`rm\.([\w.]+)((?:\([^`\n]*\))?)`", re.M | re.S)
EXECUTE = os.environ.get("RM_EXECUTE_NOTEBOOKS") == "1"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made of other files: records, notebooks, and every file that a page links to."""
    for source, uri in PAGES.items():
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, content=(ROOT / source).read_text(encoding="utf-8")))
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for uri, content in pages_of(notebook).items():
            files.append(File.generated(config, uri, content=content))
    for path in sorted(linked_files(files)):
        files.append(File.generated(config, uri_of(path), content=source_page(path)))
    return files


def linked_files(files: Files) -> set[str]:
    """Files of the repository that pages link to and that are no pages by themselves."""
    found = set()
    for file in files.documentation_pages():
        for target in LINK.findall(file.content_string):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(path_of(file.src_uri)), target))
            if (ROOT / path).is_file() and uri_of(path).startswith("source/"):
                found.add(path)
    return found


def path_of(uri: str) -> str:
    """The file of the repository that a page is made of."""
    made = {page: source for source, page in PAGES.items() if page != "index.md"}
    return made.get(uri) or (uri.replace(".md", ".ipynb") if uri.startswith("notebooks/") else f"docs/{uri}")


def uri_of(path: str) -> str:
    """The page or the file of the site that shows a file of the repository."""
    if path in PAGES:
        return PAGES[path]
    if path.endswith(".ipynb"):
        return path.replace(".ipynb", ".md")
    page = path.startswith("docs/") and not path.startswith("docs/_site/")
    return path.removeprefix("docs/") if page else f"source/{path}.md"


def source_page(path: str) -> str:
    """A page that shows a file as it is."""
    language = {".py": "python", ".sh": "bash", ".toml": "toml"}.get(Path(path).suffix, "text")
    text = (ROOT / path).read_text(encoding="utf-8")
    return f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n``````{language}\n{text}\n``````\n"


def pages_of(notebook: Path) -> dict[str, str | bytes]:
    """The page of a notebook and its pictures; executed where RM_EXECUTE_NOTEBOOKS is 1."""
    import nbformat
    from nbconvert import MarkdownExporter

    content = nbformat.read(notebook, as_version=4)
    if EXECUTE:
        from nbclient import NotebookClient

        with tempfile.TemporaryDirectory() as directory:
            resources = {"metadata": {"path": directory}}
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            NotebookClient(content, timeout=900, kernel_name="python3", resources=resources).execute(env=environment)
    text, resources = MarkdownExporter().from_notebook_node(content, resources={"unique_key": notebook.stem})
    note = "" if EXECUTE else "\n!!! note\n    This build shows the notebook without its outputs.\n"
    heading, _, rest = typeset(text).lstrip().partition("\n")
    found: dict[str, str | bytes] = {f"notebooks/{notebook.stem}.md": f"{heading}\n{note}\n{rest}"}
    return found | {f"notebooks/{name}": data for name, data in resources.get("outputs", {}).items()}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links to the site's own pages, and public names to the reference."""
    here, uri = posixpath.dirname(path_of(page.file.src_uri)), page.file.src_uri

    def lead(match: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(here, match[1]))
        if not (ROOT / path).exists():
            return match[1]
        return posixpath.relpath(uri_of(path), posixpath.dirname(uri) or ".")

    linked = markdown if uri.startswith("source/") else LINK.sub(lead, markdown)
    if uri == "log.md":  # an entry begins with lines of their own
        linked = re.sub(r"\n(?=(?:Versions|Command|Runs): )", "  \n", linked)
    known = public_names()

    def name(match: re.Match) -> str:
        fence, _, link, found, call = match.groups()
        if fence or link or found not in known:
            return match[0]
        return f"[`rm.{found}{call}`][rm.{found}]"

    skip = (
        uri.startswith("source/")
        or (uri.startswith("reference/") and uri != "reference/index.md")
        or uri in ("changelog.md", "log.md", "scale.md")
    )
    if skip:
        return linked
    return "\n".join(line if line.startswith("#") else CODE.sub(name, line) for line in _blocks(linked))


def _blocks(markdown: str) -> list[str]:
    """Lines, with each fenced block in one piece."""
    found: list[str] = []
    fence = ""
    for line in markdown.split("\n"):
        opened = re.match(r" *(`{3,})", line)
        if fence:
            found[-1] += f"\n{line}"
            fence = "" if opened and opened[1] == fence else fence
        else:
            found.append(line)
            fence = opened[1] if opened else ""
    return found


def public_names() -> set[str]:
    """The names that the reference pages show."""
    pages = (ROOT / "docs/reference").glob("*.md")
    return {name for page in pages for name in re.findall(r"^::: rm\.([\w.]+)$", page.read_text("utf-8"), re.M)}


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts SVG figures into the page, where `currentColor` is that of its text; breaks names at underscores only."""
    html = re.sub(r"<code>(?=--[^< ]{1,18}</code>)", '<code class="flag">', html)
    html = re.sub(r"(?<=<code>)[\w.]{16,}(?=</code>)", lambda name: name[0].replace("_", "_<wbr>"), html)

    def inline(match: re.Match) -> str:
        svg = (ROOT / "docs/images" / match["name"]).read_text(encoding="utf-8")
        svg = re.sub(r"<style>svg\{.*?</style>", "", svg[svg.index("<svg") :], count=1)
        return f'<div class="figure" role="img" aria-label="{match["alt"]}">{svg}</div>'

    return re.sub(r'<img alt="(?P<alt>[^"]*)" src="[^"]*images/(?P<name>[\w-]+\.svg)"[^>]*>', inline, html)
