"""The documentation as a site: every link and anchor leads somewhere, every page is made."""

import re
from pathlib import Path

import pytest
from checkouts import ROOT, Checkout


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    copy = Checkout(tmp_path_factory.mktemp("docs"), stub=False)
    copy.install()
    copy.shell("make docs")
    return copy.path / "build/site"


def text(page: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page.read_text()))


def test_every_page_is_found_from_the_overview(site):
    overview = (site / "index.html").read_text()
    pages = {path.parent.name for path in site.glob("*/index.html")} - {"commands", "reference"}
    assert len(pages) > 12
    assert [name for name in sorted(pages) if f'href="{name}/"' not in overview] == []


def test_reference_is_made_of_docstrings(site):
    reference = text(site / "reference" / "index.html")
    for part in ("cae_seg.load", "Return a fine-tuned model that segments images", "UserError"):
        assert part in reference


def test_commands_and_keys_are_documented(site):
    commands = text(site / "commands" / "index.html")
    for option in ("cae-seg prepare data", "--deterministic", "cae-seg table", "--columns"):
        assert option in commands
    assert "checkpoint_sha256" in text(site / "sheets" / "index.html")


def test_nothing_is_fetched_from_other_hosts(site):
    pages = [path.read_text() for path in site.rglob("*.html")]
    assert [
        tag for page in pages for tag in re.findall(r'<(?:script|link)[^>]+"https?:', page)
    ] == []


def test_readme_names_files_that_exist():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
