"""Marks, lines and words of the figures in docs/figures, as SVG."""

from dataclasses import dataclass
from xml.sax.saxutils import escape

INK, FAINT, GRID = "#1a1a1a", "#595959", "#e6e6e6"


@dataclass(frozen=True)
class Panel:
    """Where a panel's values lie on the page; KL on a square-root scale, as in Gao et al. 2023."""

    left: float
    top: float
    width: float
    height: float
    most_kl: float
    low: float
    high: float

    def x(self, kl: float) -> float:
        """The place of a KL."""
        return self.left + self.width * (max(kl, 0.0) / self.most_kl) ** 0.5

    def y(self, value: float) -> float:
        """The place of a score or of gold."""
        return self.top + self.height * (self.high - value) / (self.high - self.low)


def mark(x: float, y: float, shape: str, colour: str, filled: bool) -> str:
    """A point: filled or hollow, a circle, a square or a triangle."""
    size = 5.0 if filled else 3.6
    style = f'fill="{colour if filled else "#ffffff"}" stroke="{colour}" stroke-width="1.6"'
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" {style}/>'
    if shape == "square":
        half = size * 0.85
        return f'<rect x="{x - half:.1f}" y="{y - half:.1f}" width="{2 * half:.1f}" height="{2 * half:.1f}" {style}/>'
    corners = [(x, y - 1.25 * size), (x + 1.15 * size, y + 0.85 * size), (x - 1.15 * size, y + 0.85 * size)]
    return f'<polygon points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in corners)}" {style}/>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1.0) -> str:
    """A straight line."""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"/>'


def text(
    x: float,
    y: float,
    words: str,
    colour: str = INK,
    anchor: str = "start",
    size: float = 13,
    weight: str = "normal",
) -> str:
    """Words, escaped, their baseline at y."""
    style = f'fill="{colour}" text-anchor="{anchor}" font-size="{size:g}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'
