"""Pages of the documentation site that have their source elsewhere; a hook of mkdocs.yml.

`sheets.md` is config/README.md, `commands.md` the help of every command. Links that lead out of
docs/ lead to those pages, or become plain text.
"""

import argparse
import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = {"config/README.md": "sheets.md", "README.md": "index.md"}
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    sheets = (ROOT / "config/README.md").read_text()
    files.append(File.generated(config, "sheets.md", content=_links(sheets, ROOT / "config")))
    files.append(File.generated(config, "commands.md", content=_commands()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Redirect links that lead out of docs/."""
    return markdown if page.file.generated_by else _links(markdown, ROOT / "docs")


def _links(markdown: str, folder: Path) -> str:
    def redirect(found: re.Match) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        path = Path(os.path.relpath(folder / target, ROOT)).as_posix()
        if path.startswith("docs/"):
            return f"[{text}]({path.removeprefix('docs/')}{anchor})"
        return f"[{text}]({OUTSIDE[path]}{anchor})" if path in OUTSIDE else text

    return LINK.sub(redirect, markdown)


def _commands() -> str:
    from cae_seg.cli import build_parser

    os.environ["COLUMNS"] = "96"  # argparse wraps its help to the terminal's width
    os.environ["NO_COLOR"] = "1"
    pages = ["# Commands\n", "`cae-seg COMMAND --help` prints the same.\n"]
    for name, parser in _leaves(build_parser()):
        pages.append(f"## {name}\n\n```text\n{parser.format_help().strip()}\n```\n")
    return "\n".join(pages)


def _leaves(parser: argparse.ArgumentParser) -> list[tuple[str, argparse.ArgumentParser]]:
    nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not nested:
        return [(parser.prog, parser)]
    return [
        leaf for action in nested for child in action.choices.values() for leaf in _leaves(child)
    ]
