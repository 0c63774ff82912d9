"""The embedded dataset: coloured digits in the manner of street-view house numbers.

Everything is drawn from a seed with the typefaces that matplotlib ships, so the notebooks run
without a download. The fonts and Pillow's rasteriser decide the exact bytes: one machine gives
the same bytes each time, another release of Pillow may move a few pixels.
"""

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = 32  # pixels a side
SCALE = 3  # drawn this much larger, then reduced, so that edges are smooth
TRAIN, TEST = (6_000, 0), (1_000, 1)  # images and seed of each split
VERSION = 1  # part of the cache's name: raise it whenever a line below changes the images
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "cmb10",
    "cmss10",
    "cmtt10",
)
LUMINANCE = np.array([0.299, 0.587, 0.114])  # of red, green and blue
MIN_CONTRAST = 0.35  # in luminance, of digit against background before gradient, blur and noise


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of FONTS; `size` is the em height in drawn (enlarged) pixels."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def _mask(digit: int, rng: np.random.Generator) -> Image.Image:
    """Ink (0-255) of `digit` near the middle, with parts of its neighbours at either side."""
    side = SIZE * SCALE
    typeface = font(FONTS[rng.integers(len(FONTS))], int(rng.integers(20, 34)) * SCALE)
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)

    def ink(text: str) -> tuple[float, float, float, float]:
        return draw.textbbox((0, 0), text, font=typeface)

    left, top, right, bottom = ink(str(digit))
    x, y = (side - left - right) / 2, (side - top - bottom) / 2
    draw.text((x, y), str(digit), fill=255, font=typeface)
    gap = rng.uniform(1.5, 3.5) * SCALE
    before, after = rng.integers(10, size=2)
    if rng.random() < 0.6:
        draw.text((x + left - gap - ink(str(before))[2], y), str(before), fill=255, font=typeface)
    if rng.random() < 0.6:
        draw.text((x + right + gap - ink(str(after))[0], y), str(after), fill=255, font=typeface)

    turned = canvas.rotate(
        rng.uniform(-15, 15),
        resample=Image.Resampling.BICUBIC,
        translate=tuple(rng.integers(-2 * SCALE, 2 * SCALE + 1, size=2).tolist()),
    )
    return turned.resize((SIZE, SIZE), Image.Resampling.BOX)


def _colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Foreground and background, RGB in [0.05, 0.95], at least MIN_CONTRAST apart."""
    while True:
        pair = rng.uniform(0.05, 0.95, size=(2, 3))
        if abs((pair[0] - pair[1]) @ LUMINANCE) >= MIN_CONTRAST:
            return pair[0], pair[1]


def _draw(digit: int, rng: np.random.Generator) -> np.ndarray:
    """One image, uint8 (3, 32, 32)."""
    blurred = _mask(digit, rng).filter(ImageFilter.GaussianBlur(rng.uniform(0, 1)))
    ink = np.asarray(blurred, dtype=float)[..., None] / 255
    foreground, background = _colours(rng)

    across, down = np.meshgrid(*2 * [np.linspace(-1, 1, SIZE)])
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.05)
    shade = strength * (np.cos(angle) * across + np.sin(angle) * down)[..., None]

    image = ink * foreground + (1 - ink) * (background + shade)
    image += rng.normal(0, rng.uniform(0.005, 0.04), size=image.shape)
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8).transpose(2, 0, 1)


def make_digits(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw `n` digits; the same `n` and `seed` give the same bytes.

    Returns the images, uint8 (n, 3, 32, 32) in 0-255, and the labels, int64 (n,) in 0-9: each
    digit equally often (to within one), in random order. Under a millisecond an image.
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n, dtype=np.int64) % 10)
    images = np.empty((n, 3, SIZE, SIZE), np.uint8)
    for i, digit in enumerate(labels):
        images[i] = _draw(int(digit), rng)
    return images, labels
