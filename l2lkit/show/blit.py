"""Pictures of which a slider changes a part: it alone is drawn anew, on a saved background."""

from collections.abc import Sequence
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image


class Blitted:
    """A figure that is drawn once, at 100 dpi, but for the artists that are `moving`: these are
    drawn for every picture, so that a slider's move costs milliseconds."""

    def __init__(self, figure: Figure, moving: Sequence[Artist] = ()):
        self.figure, self.moving = figure, moving

    @cached_property
    def _still(self) -> tuple[FigureCanvasAgg, Any]:
        """The canvas, and what on it stands still."""
        self.figure.set_dpi(100)
        canvas = FigureCanvasAgg(self.figure)
        for artist in self.moving:
            artist.set_animated(True)  # has its place in the layout, but is not drawn
        canvas.draw()
        for artist in self.moving:
            artist.set_animated(False)
        return canvas, canvas.copy_from_bbox(self.figure.bbox)

    def png(self) -> bytes:
        """The figure with the moving artists as they are now, as PNG bytes."""
        canvas, background = self._still
        canvas.restore_region(background)
        for artist in self.moving:
            artist.draw(canvas.get_renderer())
        buffer = BytesIO()
        pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        pixels.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()
