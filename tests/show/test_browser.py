"""The explorers as a person meets them: a real JupyterLab and the report's page, in Chromium.

Needs Playwright, a Chromium and a finished smoke run (`python -m l2lkit run --profile smoke`, in
$L2LKIT_OUTPUT if that is set); says so and skips where one of them is missing.
"""

import base64
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = Path(os.environ.get("L2LKIT_OUTPUT") or ROOT)
REPORT = OUTPUT / "runs" / "smoke" / "report" / "index.html"
BROWSERS = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
BROWSER = next(filter(None, BROWSERS), "")
NOTEBOOKS = ("00_overview", "01_limiting_cycle", "05_perturbations")
PATIENCE = 90_000  # milliseconds; the machine may be busy

pytestmark = [pytest.mark.slow] + [
    pytest.mark.skipif(missing, reason=reason)
    for missing, reason in (
        (not importlib.util.find_spec("playwright"), "no Playwright: install the extra `dev`"),
        (not BROWSER, "no Chromium: apt-get install chromium"),
        (not REPORT.exists(), f"no smoke run in {OUTPUT}: python -m l2lkit run --profile smoke"),
    )
]


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """A page whose console must stay clean."""
    page = chromium.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(PATIENCE)
    said = []
    page.on("console", lambda m: said.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    page.close()
    assert not said


@contextmanager
def jupyterlab(home, profile="smoke"):
    """The address of a JupyterLab over copies of the notebooks, without the user's settings."""
    for name in NOTEBOOKS:
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", home)
    settings = {
        "notebook-extension/tracker": {"windowingMode": "none"},  # all cells are on the page
        "apputils-extension/notification": {"fetchNews": "false"},
    }
    for name, content in settings.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "L2LKIT_PROFILE": profile,
        "L2LKIT_OUTPUT": str(OUTPUT),
        "L2LKIT_DEVICE": "cpu",
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "JUPYTER_PREFER_ENV_PATH": "1",
    }
    server = f"--ServerApp.port={port} --ServerApp.port_retries=0 --ServerApp.root_dir={home}"
    options = (
        f"--no-browser --allow-root {server} --IdentityProvider.token=browser "
        "--LabApp.news_url=None --LabApp.expose_app_in_browser=True"
    )
    command = [sys.executable, "-m", "jupyterlab", *options.split()]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/api?token=browser").close()
                break
            except OSError:
                assert server.poll() is None, (home / "log").read_text()
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with jupyterlab(tmp_path_factory.mktemp("lab")) as address:
        yield address


def run_all(page, lab, name):
    """Open a notebook, run all its cells, and return when the last one is done without an error."""
    page.goto(f"{lab}/lab/workspaces/{name[:2]}/tree/{name}.ipynb?token=browser")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
    kernel = "jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
    page.wait_for_function(kernel)
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    prompts = "[...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')]"
    page.wait_for_function(
        f"n => {prompts}.filter(p => /\\[\\d+\\]/.test(p.textContent)).length >= n && {kernel}",
        arg=sum(  # a folded cell has no prompt
            cell["cell_type"] == "code" and not cell["metadata"].get("jupyter") for cell in cells
        ),
    )
    errors = page.locator("[data-mime-type$='error'], [data-mime-type$='stderr']")
    assert errors.all_inner_texts() == []


# What a card shows: its title, and its pictures by the text beside them.
CARDS = """deck => [...deck.querySelectorAll('.l2l-card')].map(card => ({
  title: card.querySelector('h4').textContent,
  verdict: card.querySelector('.l2l-verdict').textContent,
  chances: [...card.querySelectorAll('tbody tr')].map(
    tr => [...tr.cells].slice(2).map(td => td.textContent)),
  pictures: Object.fromEntries([...card.querySelectorAll('canvas')].map(
    picture => [picture.getAttribute('aria-label'), picture.toDataURL()])),
}))"""


def pixels(url):
    picture = Image.open(BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")
    return np.asarray(picture).astype(int)


def read(deck):
    """Title -> verdict, probabilities (before, after) and pictures as arrays, by kind."""
    shown = {}
    for card in deck.evaluate(CARDS):
        pictures = {alt.split()[0]: pixels(url) for alt, url in card["pictures"].items()}
        shown[card["title"]] = (card["verdict"], card["chances"], pictures)
    return shown


def after(deck, act):
    """What the deck shows once `act` has changed it."""
    before = deck.inner_html() + str(deck.evaluate(CARDS))
    act()
    for _ in range(PATIENCE // 50):
        if deck.inner_html() + str(deck.evaluate(CARDS)) != before:
            return read(deck)
        deck.page.wait_for_timeout(50)
    raise AssertionError("the picture did not change")


def check_explorer(deck, zero, magnify, more):
    """Whatever the front end: `zero()` takes ε to 0, `magnify(m)` presses m×, `more()` adds
    Grad L2L. ε is above 0 and the magnification 30× at the start."""
    start = read(deck)
    clean = start.pop(next(iter(start)))[2]["clean"]
    assert list(start) == ["Plain Net", "PGM Net", "2-Step L2L"]
    spread = {30: [p["perturbation"].std() for _, _, p in start.values()]}
    for m in (5, 1):
        shown = after(deck, lambda m=m: magnify(m))
        spread[m] = [shown[name][2]["perturbation"].std() for name in start]
    assert all(a > 2 * b > 4 * c for a, b, c in zip(spread[30], spread[5], spread[1], strict=True))
    spoken = deck.locator("xpath=..").get_by_role("status").text_content()
    assert spoken == "; ".join(f"{name} {card[0]}" for name, card in start.items())
    for verdict, chances, pictures in start.values():
        fooled = verdict.startswith("✗")
        assert fooled or verdict.startswith("✓ still right: ")
        best = max(chances, key=lambda pair: int(pair[1].strip("%")))
        assert verdict.endswith(f", {best[1]}")
        assert (pictures["adversarial"] != clean).any() and pictures["perturbation"].std() > 0
    grown = after(deck, more)
    assert list(grown)[1:] == ["Plain Net", "PGM Net", "Grad L2L", "2-Step L2L"]
    chances = [card[1] for card in list(grown.values())[1:]]
    assert all(a != b for i, a in enumerate(chances) for b in chances[:i])
    none = after(deck, zero)
    for name in list(none)[1:]:
        verdict, chances, pictures = none[name]
        assert "fooled" not in verdict and all(b == a for b, a in chances)
        np.testing.assert_array_equal(pictures["adversarial"], clean)
        assert set(np.unique(pictures["perturbation"])) == {128}


def test_perturbation_explorer(page, lab):
    run_all(page, lab, "05_perturbations")
    deck = page.locator(".l2l-deck")  # more than one would be an error

    def slider(name):
        row = page.locator(".widget-slider", has=page.locator(f"label:text-is('{name}')"))
        return row.locator(".noUi-handle")

    def drag(handle, x):
        box = handle.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + x, box["y"], steps=8)
        page.mouse.up()

    check_explorer(
        deck,
        zero=lambda: slider("ε").press("Home"),
        magnify=lambda m: page.get_by_role("button", name=f"{m}×", exact=True).click(),
        more=lambda: page.get_by_role("button", name="Grad L2L", exact=True).click(),
    )
    one = after(deck, lambda: drag(slider("ε"), 60))
    assert all(card[2]["perturbation"].std() for card in list(one.values())[1:])
    page.wait_for_timeout(500)  # the last of the drag's moves
    again = after(deck, lambda: page.get_by_role("button", name="new draw").click())
    assert (again["PGM Net"][2]["perturbation"] != one["PGM Net"][2]["perturbation"]).any()
    slider("steps T").press("End")  # three or four times PGM-100 take a while …
    slider("ε").press("Home")  # … and the next move ends them
    deck.locator(".l2l-size", has_text="largest 0.000").nth(3).wait_for()
    page.wait_for_timeout(500)
    assert deck.locator(".l2l-size", has_text="largest 0.000").count() == 4
    after(deck, lambda: slider("ε").press("End"))
    longer = page.locator(".widget-slider", has_text="steps T")
    assert longer.is_visible()
    after(deck, lambda: page.get_by_label("attack", exact=True).select_option("FGSM"))
    assert not longer.is_visible()
    other = after(deck, lambda: page.locator("button[data-value='7']").click())
    assert list(other)[0] == "class 7" and len(other) == 5  # the classifiers chosen are still there


def test_limiting_cycle_explorer(page, lab):
    run_all(page, lab, "01_limiting_cycle")
    image = page.locator("img.widget-image")
    first = image.screenshot()
    words = page.locator(".widget-html", has_text="Distance from the equilibrium")
    start = words.inner_text()
    for act in (
        lambda: page.get_by_label("method").select_option("extragradient"),
        lambda: page.locator(".widget-slider .noUi-handle").first.press("ArrowRight"),
        lambda: page.locator(".widget-slider .noUi-handle").last.press("End"),
    ):
        before = words.inner_text()
        act()
        page.wait_for_function(
            "before => ![...document.querySelectorAll('.widget-html')]"
            ".some(e => e.innerText.trim() === before.trim())",
            arg=before,
        )
    assert words.inner_text() != start and image.screenshot() != first
    assert "Path of extragradient steps" in image.get_attribute("title")
    assert image.count() == 1


def test_overview(page, lab):
    run_all(page, lab, "00_overview")
    deck = page.locator(".l2l-deck")
    cards = read(deck)
    assert list(cards)[1:] == ["Plain Net", "PGM Net", "2-Step L2L"]
    nothing = after(deck, lambda: page.locator(".noUi-handle").first.press("Home"))
    assert all("fooled" not in verdict for verdict, _, _ in nothing.values())
    assert page.locator("em", has_text="Clean accuracy, accuracy under PGM-20").count() == 1


def test_report_explores_without_a_kernel_or_a_network(page):
    asked = []
    page.on("request", lambda request: asked.append(request.url[:60]))
    page.goto(REPORT.as_uri())
    frame = page.frame_locator("iframe")
    deck = frame.locator(".l2l-deck")
    frame.locator(".l2l-card").first.wait_for()
    check_explorer(
        deck,
        zero=lambda: frame.get_by_label("ε").press("Home"),
        magnify=lambda m: frame.get_by_label(f"{m}×", exact=True).check(),
        more=lambda: frame.get_by_label("Grad L2L", exact=True).check(),
    )
    assert all(url.startswith((REPORT.as_uri()[:60], "data:", "about:")) for url in asked)
    assert page.locator("img:not([alt])").count() == 0
