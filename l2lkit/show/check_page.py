"""What `check` found as one page: its table, and four figures. It asks the network for nothing."""

import base64
import html
from collections.abc import Callable
from io import BytesIO

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from l2lkit.checks import measures
from l2lkit.checks.attacks import LONG
from l2lkit.checks.evidence import large_epsilon
from l2lkit.checks.examination import ACCURACY, Examination
from l2lkit.checks.preflight import interval
from l2lkit.show import style

CSS = """
body{font:15px/1.45 sans-serif;max-width:72em;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;
  padding:.3em .6em;border-bottom:1px solid #ddd}
th{background:#f4f4f4}.fails{color:#a00;font-weight:bold}
.holds{color:#060}small{color:#555}figure{display:inline-block;margin:1em 1em 0 0;max-width:34em}
figcaption{color:#444}img{max-width:100%}"""


def page(result: Examination, about: dict) -> str:
    """The page as HTML. `about` says what was examined: what every caption ends with."""
    frame, n = result.frame, len(result.subject.labels)
    rows = []
    for group, part in frame.groupby("group", sort=False):
        rows.append(f"<tr><th colspan=3>{html.escape(str(group))}</th></tr>")
        for row in part.itertuples():
            cells = html.escape(str(row.figure))
            if row.meaning:
                cells += f"<br><small>{html.escape(str(row.meaning))}</small>"
            rows.append(
                f"<tr><td>{html.escape(str(row.item))}</td><td class={row.verdict or 'none'}>"
                f"{row.verdict}</td><td>{cells}</td></tr>"
            )
    facts = "".join(
        f"<tr><td>{html.escape(k)}</td><td>{html.escape(str(v))}</td></tr>"
        for k, v in about.items()
    )
    end = (
        f"{about['classifier']}, {about['data']}, {n} test images, ε = {result.budget.epsilon:.4g}."
    )
    figures = "".join(_figure(draw, result, words, end) for draw, words in FIGURES)
    failed = f"{len(result.failed)} items fail" if result.failed else "no item fails"
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'><title>Is this robustness real?</title>"
        f"<style>{CSS}</style><h1>Is this robustness real? {failed}</h1>"
        "<p>A robust accuracy is an upper bound: a better attack can only lower it. An item that "
        "holds says that a flaw larger than its tolerance was looked for and not found.</p>"
        f"<table>{''.join(rows)}</table>{figures}<h2>What was examined</h2><table>{facts}</table>"
        "</html>\n"
    )


def _figure(
    draw: Callable[[Axes, Examination], None], result: Examination, words: str, end: str
) -> str:
    caption = html.escape(f"{words} {end}")
    with mpl.rc_context():
        style.use_style()
        fig, ax = plt.subplots(figsize=(6, 3.6))
        draw(ax, result)
        buffer = BytesIO()
        fig.savefig(buffer, format="png", dpi=110)
        plt.close(fig)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _bars(ax: Axes, result: Examination) -> None:
    rows = result.frame[result.frame.group == ACCURACY]
    bounds = [interval(round(v * n), int(n)) for v, n in zip(rows.value, rows.images, strict=True)]
    share = rows.value.astype(float).to_numpy()
    low, high = np.array(bounds).T
    ax.barh(rows.item, 100 * share, xerr=100 * np.array([share - low, high - share]))
    ax.invert_yaxis()
    ax.set_xlabel("accuracy %")
    ax.tick_params(axis="y", labelsize=9)


def _radii(ax: Axes, result: Examination) -> None:
    accuracy = large_epsilon(result.subject, result.budget)
    ax.plot(list(accuracy), [100 * v for v in accuracy.values()], marker="o")
    ax.axvline(result.budget.epsilon, color="0.5", ls="--")
    ax.set_xscale("symlog", linthresh=result.budget.epsilon)
    ax.set_xlabel("ε of PGM-10")
    ax.set_ylabel("accuracy %")


def _steps(ax: Axes, result: Examination) -> None:
    run = measures.long_run(result.subject, result.budget, max(1, len(result.subject.labels) // 4))
    ax.plot(LONG, run["loss"], marker="o")
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xlabel("steps of PGM")
    ax.set_ylabel("mean loss")


def _surface(ax: Axes, result: Examination) -> None:
    plane = measures.loss_surface(result.subject, 0, epsilon=result.budget.epsilon)
    levels = ax.tricontourf(plane["b"], plane["a"], plane["loss"], levels=20)
    ax.figure.colorbar(levels, ax=ax, label="loss")
    ax.plot(0, 0, "x", color="white")
    ax.set_xlabel("random signs, in ε")
    ax.set_ylabel("signs of the gradient, in ε")


FIGURES = (
    (_bars, "Accuracy under each attack, with Wilson's interval of 95%."),
    (_radii, "Accuracy under PGM-10 for ε up to 1, where any picture is allowed: it must reach 0."),
    (_steps, "Loss over one run of PGM-500, on a quarter of the images: it should level off."),
    (_surface, "Loss around the first image: lines across are honest, speckle and ridges are not."),
)
