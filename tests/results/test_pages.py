import dataclasses
import re

import pytest
from fake_runs import make_sweep

from cae_seg.results.report_pages import write_overview, write_page, write_run_pages


@pytest.fixture
def pages(tmp_path):
    sheet = make_sweep(tmp_path / "results", {(1600, "1e-4"): (50.3, 50.5), (300, "2e-4"): (47.0,)})
    write_run_pages(sheet, tmp_path / "pages")
    return {file.stem: file.read_text() for file in (tmp_path / "pages").iterdir()}


def test_every_run_has_a_page_with_its_scores_and_provenance(pages):
    assert len(pages) == 3
    page = next(text for name, text in pages.items() if "1600" in name and name.endswith("seed1"))
    assert "mIoU 50.50" in page
    assert "1600 epochs" in page
    assert re.search(r"fingerprint \w+", page)
    assert re.search(r"commit \w+", page)


def test_a_page_needs_no_other_file_and_leads_nowhere(tmp_path):
    write_page("a < b", "| A |\n|---|\n| [x](../y.py) **z** |", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<td>x <strong>z</strong></td>" in page
    assert "<title>a &lt; b</title>" in page
    assert "href" not in page


def test_unfinished_runs_have_no_page(tmp_path):
    sheet = make_sweep(tmp_path / "results", {(300, "2e-4"): (47.0,)})
    next((tmp_path / "results").glob("*/seed_0/metrics.json")).unlink()
    write_run_pages(sheet, tmp_path / "pages")
    assert not list((tmp_path / "pages").iterdir())


def test_the_overview_names_the_best_row_and_leads_from_rows_to_runs(tmp_path):
    cells = {(1600, "1e-4"): (50.3, 50.5), (300, "2e-4"): (47.0,)}
    sheet = make_sweep(tmp_path / "results", cells)
    write_overview(sheet, tmp_path / "overview.rst")
    text = (tmp_path / "overview.rst").read_text()
    best = next(line for line in text.splitlines() if line.startswith("**Best:**"))
    assert "1600" in best
    assert "50.40 ± 0.14 (n=2)" in best
    write_run_pages(sheet, tmp_path / "pages")
    linked = set(re.findall(r"<(\S+\.html)_>`__", text))
    assert linked == {page.name for page in (tmp_path / "pages").iterdir()}


def test_the_overview_of_rows_that_differ_in_method_names_that_of_the_best(tmp_path):
    cells = {(1600, "1e-4"): (50.3, 50.5), (300, "2e-4"): (47.0,)}
    sheet = make_sweep(tmp_path / "results", cells)
    first, *others = sheet.experiments
    other = [row.model_copy(update={"method": "Mine"}) for row in others]
    write_overview(dataclasses.replace(sheet, experiments=[first, *other]), tmp_path / "o.rst")
    best = next(line for line in (tmp_path / "o.rst").read_text().splitlines() if "Best" in line)
    assert "Method CAE" in best
