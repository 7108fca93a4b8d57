"""One pair of axes as inline SVG that follows the page's colors, light or dark.

matplotlib is imported only where something is drawn. Figures are drawn in marker colors, which are then replaced by the
CSS variables of the page; text stays text, so that it can be selected, searched and shown in the page's font.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, RULE, ACCENT, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
SERIES = ("#060601", "#060602", "#060603", "#060604", "#060605", "#060606")
TONES = {INK: "ink", MUTED: "muted", RULE: "rule", ACCENT: "accent", PAPER: "paper"} | {
    tone: f"series-{index}" for index, tone in enumerate(SERIES, 1)
}
DASHES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)))  # so that no line is told by its color alone
MARKERS = ("o", "^", "D", "v", "P", "X")  # the square is the dense model's
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a "$" in a layer's name is a "$"
    "font.family": "DejaVu Sans",  # ships with matplotlib: measures the text, the page's own font then shows it
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Plot:
    """One figure: inline SVG with a title, what is seen in words, and a caption."""

    title: str
    alt: str
    caption: str
    svg: str


def plot(title: str, alt: str, caption: str, height: float, paint: Callable[[Axes], None]) -> Plot:
    """Paint one pair of axes, 4.8 inches wide and `height` inches tall, into inline SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with mpl.rc_context(STYLE | {"svg.hashsalt": title}), warnings.catch_warnings():  # the salt: same data, same bytes
        warnings.filterwarnings("ignore", "Glyph .* missing")  # only measures the text: the page's font shows it
        figure = Figure(figsize=(4.8, height), layout="constrained")
        paint(figure.add_subplot())
        blank = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=blank)
    return Plot(title, alt, caption, inline(buffer.getvalue()))


def inline(svg: str) -> str:
    """The bare <svg> element: no prolog, name spaces, fixed size or repeated ids; page colors for marker colors."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 aria-hidden="true"', svg)
    return re.sub("|".join(TONES), lambda tone: f"var(--{TONES[tone.group()]})", svg)
