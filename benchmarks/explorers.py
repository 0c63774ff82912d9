"""How long a move of the perturbation explorer takes until its picture is there.

    python benchmarks/explorers.py [--profile NAME] [--output DIR] [--browser]

Needs a finished run of the profile. Moves ε, warm, under every attack, with each classifier alone
and with the three of the first view side by side, and the epoch of the training replay; prints the
median of the milliseconds in the kernel. With --browser: from the key pressed on the slider to the
new picture in a JupyterLab in Chromium, three side by side, which adds what messages and drawing
cost.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from l2lkit import Store
from l2lkit.show.explorer import PerturbationExplorer
from l2lkit.show.widgets import training_replay

ROOT = Path(__file__).resolve().parents[1]
MOVES = 15
# Leaves in `took` the milliseconds from a key to the first frame after the deck has changed.
WATCH = """() => {
  window.took = null;
  let began;
  addEventListener('keydown', () => { began = performance.now(); }, {capture: true, once: true});
  new MutationObserver((_, watch) => {
    watch.disconnect();
    requestAnimationFrame(() => { window.took = performance.now() - began; });
  }).observe(document.querySelector('.l2l-deck'), {childList: true});
}"""


def in_kernel(store: Store) -> pd.DataFrame:
    """Median milliseconds: a row an attack, a column a choice of classifiers."""
    explorer = PerturbationExplorer(store)
    start = [toggle.value for toggle in explorer.classifiers]
    alone = {t.description: [t is u for u in explorer.classifiers] for t in explorer.classifiers}
    rows: dict[str, dict[str, float]] = {}
    for attack in explorer.attack.options:
        explorer.attack.value = attack
        rows[attack] = {}
        for name, chosen in (alone | {"three": start}).items():
            for toggle, value in zip(explorer.classifiers, chosen, strict=True):
                toggle.value = value
            explorer.wait()
            times = []
            for epsilon in np.linspace(0.02, 0.05, MOVES):
                began = time.perf_counter()
                explorer.epsilon.value = epsilon
                explorer.wait()
                times.append(1000 * (time.perf_counter() - began))
            rows[attack][name] = np.median(times)
    return pd.DataFrame.from_dict(rows, orient="index").round(1)


def replay(store: Store) -> pd.Series:
    """Median milliseconds of a move of the training replay's epoch, by defence."""
    shown = training_replay(store)
    defence, epoch = shown.children[0].children
    medians = {}
    for label, name in defence.options.items():
        defence.value = name
        times = []
        for value in (*range(1, epoch.max), *range(epoch.max, 0, -1)):
            began = time.perf_counter()
            epoch.value = value
            times.append(1000 * (time.perf_counter() - began))
        medians[label] = np.median(times)
    return pd.Series(medians).round(1)


def in_browser(profile: str) -> pd.Series:
    """Median milliseconds by attack, three classifiers side by side, in notebook 05. Without CW:
    it stops at the first success, and a little more ε often changes nothing that could be seen."""
    from playwright.sync_api import sync_playwright

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "show"))
    import test_browser as browser

    medians = {}
    with (
        tempfile.TemporaryDirectory() as home,
        browser.jupyterlab(Path(home), profile) as lab,
        sync_playwright() as playwright,
    ):
        chromium = playwright.chromium.launch(
            executable_path=browser.BROWSER, args=["--no-sandbox"]
        )
        page = chromium.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(browser.PATIENCE)
        browser.run_all(page, lab, "05_perturbations")
        select = page.get_by_label("attack", exact=True)
        slider = page.locator(".widget-slider", has=page.locator("label:text-is('ε')"))
        for attack in select.locator("option").all_inner_texts():
            if attack == "CW":
                continue
            select.select_option(attack)
            page.wait_for_timeout(2000)
            handle = slider.locator(".noUi-handle")
            times = []
            for move in range(MOVES):
                key = "ArrowLeft" if move % 2 else "ArrowRight"
                page.evaluate(WATCH)
                handle.press(key)
                times.append(page.wait_for_function("window.took").json_value())
                page.wait_for_timeout(300)
            medians[attack] = np.median(times)
        chromium.close()
    return pd.Series(medians).round(0)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    words.add_argument("--profile", default="quick")
    words.add_argument("--output")
    words.add_argument("--browser", action="store_true")
    args = words.parse_args()
    store = Store(args.profile, output=args.output)
    print(f"{store.caption(seeds=1)} {store.machine()['device']}. Median milliseconds.")
    print(in_kernel(store).to_string())
    print("\nThe training replay:")
    print(replay(store).to_string())
    if args.browser:
        os.environ["L2LKIT_OUTPUT"] = str(store.output)
        print("\nIn the browser, three side by side:")
        print(in_browser(args.profile).to_string())


if __name__ == "__main__":
    main()
