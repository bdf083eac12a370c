"""The app's icon: a flower of bits."""

import io

from PIL import Image, ImageDraw

# Each row eight cells: . nothing, 1 to 3 how many masks of a superposition cover the cell.
_BITS = (
    ".11..11.",
    "12211221",
    "12333321",
    ".133331.",
    ".133331.",
    "12333321",
    "12211221",
    ".11..11.",
)
_GREEN = (15, 122, 95)
_SHADES = {"1": (120, 200, 170), "2": (190, 232, 214), "3": (255, 255, 255)}
_MARGIN = 4  # cells around the drawing: it stays in the middle 80 %, which no mask of a maskable icon cuts
_ROUND = 0.22  # radius of the corners per side


def icon(size: int, *, full_bleed: bool) -> bytes:
    """Return a PNG of size × size pixels; ``full_bleed`` fills the corners, for systems that cut them themselves."""
    image = Image.new("RGBA", (size, size), (*_GREEN, 255 if full_bleed else 0))
    draw = ImageDraw.Draw(image)
    margin = _MARGIN
    if not full_bleed:
        draw.rounded_rectangle((0, 0, size - 1, size - 1), radius=round(_ROUND * size), fill=(*_GREEN, 255))
        margin = 2
    cells = len(_BITS) + 2 * margin
    edge = [round(size * i / cells) for i in range(cells + 1)]
    gap = max(1, size // 160)
    for y, row in enumerate(_BITS, start=margin):
        for x, bit in enumerate(row, start=margin):
            if bit in _SHADES:
                box = (edge[x] + gap, edge[y] + gap, edge[x + 1] - 1 - gap, edge[y + 1] - 1 - gap)
                draw.rectangle(box, fill=(*_SHADES[bit], 255))
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return data.getvalue()
