"""Renew the pictures of the docs from a finished demo: `python tests/screenshots.py`.

Needs `make demo`, its report (`snakemake --profile demo --report report.html`) and Chromium; run in
the folder of the demo, with the folder of pictures as argument where it is not `docs/images`.
"""

import re
import subprocess
import sys
import time
from pathlib import Path

from browser import FOLD_ASSISTANT, Browser, open_browser

DRAWN_SECONDS = 5.0  # until charts are drawn, which no text tells


def main() -> None:
    """Save the report and three views of MLflow as PNG."""
    pictures = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images")
    with open_browser(1400, 900) as browser:
        browser.open(Path("report.html").absolute().as_uri())
        browser.wait_for_text("Statistics", "Best:")
        _save(browser, pictures / "report.png")
    ui = subprocess.Popen(["cae-seg", "ui", "--port", "5099"], stdout=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://\S+", ui.stdout.readline()).group()
        with open_browser(1400, 900) as browser:
            _save_mlflow(browser, address, pictures)
    finally:
        ui.terminate()
        ui.wait()


def _save_mlflow(browser: Browser, address: str, pictures: Path) -> None:
    _open(browser, address.split("#")[0])
    browser.run(FOLD_ASSISTANT)
    browser.open(address)
    browser.wait_for_text("tiny_300_lr1e-3_seed0", "tiny_1600_lr3e-3_seed0")
    _save(browser, pictures / "mlflow_runs.png")
    for name in ("tiny_300_lr3e-3_seed0", "tiny_1600_lr3e-3_seed0"):
        row = f"//div[@role='row'][.//text()[contains(., '{name}')]]"
        browser.click(f"{row}//input[@type='checkbox']")
    browser.click("//button[contains(., 'Compare')]")
    browser.wait_for_text("Comparing 2 Runs")
    _save(browser, pictures / "mlflow_compare.png")
    browser.open("about:blank")
    browser.open(f"{address}&compareRunsMode=CHART")
    browser.wait_for_text("Model metrics", "mIoU")
    _save(browser, pictures / "mlflow_charts.png")


def _open(browser: Browser, address: str) -> None:
    while True:  # the server starts
        try:
            browser.open(address)
            return
        except RuntimeError:
            time.sleep(1)


def _save(browser: Browser, path: Path) -> None:
    time.sleep(DRAWN_SECONDS)
    browser.screenshot(path)


if __name__ == "__main__":
    main()
