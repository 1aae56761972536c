"""The page about mmsegmentation's zoo is true."""

import re
from pathlib import Path

import pytest

from benchmarks.zoo import PAGE, Outcome, page_text, try_config
from cae_seg.config_files import zoo_configs

ROOT = Path(__file__).resolve().parents[2]


def rows(text: str) -> dict[str, tuple[int, int]]:
    """Return the numbers of working and of all configs by family."""
    found = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \|", text, re.MULTILINE)
    return {family: (int(works), int(count)) for family, works, count in found}


def test_the_page_counts_the_configs_of_the_installed_version():
    page = rows((ROOT / PAGE).read_text())
    families: dict[str, int] = {}
    for name in zoo_configs():
        family = name.split("/")[0]
        families[family] = families.get(family, 0) + 1
    assert {family: count for family, (_, count) in page.items()} == families


def test_a_family_that_works_in_part_names_the_others():
    text = page_text([Outcome("a/1.py", "", 2_000_000), Outcome("a/2.py", "needs x")])
    assert "| a | 1 | 2 | 2.0 M | `2.py`: needs x |" in text


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pspnet/pspnet_r50-d8_4xb4-160k_ade20k-512x512.py", ""),
        ("convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py", ""),
        ("mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py", "needs mmdetection"),
        ("point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py", "needs compiled mmcv ops"),
    ],
)
def test_a_config_of_the_zoo_builds_or_says_what_is_missing(name, reason):
    outcome = try_config(name)
    assert outcome.reason.startswith(reason)
    assert bool(outcome.parameters) == (not reason)


@pytest.mark.slow
def test_a_sample_of_60_configs_is_as_the_page_has_it():
    page = rows((ROOT / PAGE).read_text())
    sample = list(zoo_configs())[::11]
    assert len(sample) >= 60
    for outcome in map(try_config, sample):
        works, count = page[outcome.family]
        assert works < count if outcome.reason else works > 0, outcome
