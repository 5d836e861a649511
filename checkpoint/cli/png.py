"""A chart as a PNG image: the shapes of its SVG, drawn by Pillow, which is an extra."""

from __future__ import annotations

import re
from io import BytesIO
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

_SCALE = 2
"""PNG pixels per SVG pixel: more than one, so that text is sharp."""
_SPACE = "{http://www.w3.org/2000/svg}"
_STEP = re.compile(r"([MHVL])([-0-9.]+)(?: ([-0-9.]+))?")


def png(svg: str) -> bytes:
    """Convert an SVG of `chart` to PNG: rectangles, texts, circles, and paths of M, L, H and V.

    Raises:
        ImportError: Pillow is not installed.

    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ImportError("A PNG image needs Pillow: pip install 'checkpoint-store[png]'") from error
    root = ET.fromstring(svg)  # noqa: S314 - as above
    image = Image.new("RGB", (_scaled(root, "width"), _scaled(root, "height")), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(12 * _SCALE)
    for shape in root.iter():
        match shape.tag.removeprefix(_SPACE):
            case "path":
                width = float(shape.get("stroke-width", "1"))
                pen.line(_corners(shape.get("d", "")), shape.get("stroke"), round(width * _SCALE))
            case "circle":
                center = _scaled(shape, "cx"), _scaled(shape, "cy")
                pen.circle(center, _scaled(shape, "r"), shape.get("fill"))
            case "text":
                _write(pen, font, shape)
            case _:  # groups, and the background, which is white like the image
                pass
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _scaled(shape: ET.Element, name: str) -> int:
    return round(float(shape.get(name, "0")) * _SCALE)


def _corners(path: str) -> list[tuple[float, float]]:
    """Return the corners of a path in pixels."""
    corners: list[tuple[float, float]] = []
    for step, first, second in _STEP.findall(path):
        x, y = corners[-1] if corners else (0.0, 0.0)
        length = float(first) * _SCALE
        corners.append(
            (length, float(second) * _SCALE) if step in "ML" else (length, y) if step == "H" else (x, length)
        )
    return corners


def _write(pen: ImageDraw, font: FreeTypeFont | ImageFont, shape: ET.Element) -> None:
    anchor = {"start": "ls", "end": "rs"}.get(shape.get("text-anchor", "start"), "ls")
    place, bold = (_scaled(shape, "x"), _scaled(shape, "y")), shape.get("font-weight") == "bold"
    pen.text(place, shape.text or "", shape.get("fill", "black"), font, anchor, stroke_width=0.6 if bold else 0)
