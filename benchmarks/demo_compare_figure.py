"""The frontiers of benchmarks/demo_compare.py as an SVG: a panel for each seed, gold against KL."""

from itertools import groupby
from typing import Any

from svg import FAINT, GRID, INK, Panel, line, mark, text

# Okabe and Ito's colours: told apart by those who see fewer, on white and in grey; and a shape each.
_METHODS = {
    "ppo": ("PPO", "#0072B2", "circle"),
    "dpo": ("DPO", "#D55E00", "triangle"),
    "best-of-n": ("best of n of SFT, KL at its upper bound", "#595959", "square"),
}
_COLUMNS, _PANEL_WIDTH, _PANEL_HEIGHT, _GAP_X, _GAP_Y = 3, 280, 210, 58, 74
_LEFT, _TOP, _BOTTOM = 62, 104, 64
_X_TICKS = (0, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)


def draw(frontiers: dict[int, dict[str, Any]]) -> str:
    """The figure: `frontiers` is by seed what report.json has under `frontier`."""
    everything = [one for part in frontiers.values() for one in [part["start"], *part["points"]]]
    ends = [one["gold"][end] for one in everything for end in ("low", "high")]
    margin = 0.05 * (max(ends) - min(ends))
    low, high = min(ends) - margin, max(ends) + margin
    most_kl = 1.05 * max(one["kl"]["high"] for one in everything)
    columns = min(_COLUMNS, len(frontiers))
    rows = -(-len(frontiers) // _COLUMNS)
    width = max(_LEFT + columns * (_PANEL_WIDTH + _GAP_X), 760)
    height = _TOP + rows * _PANEL_HEIGHT + (rows - 1) * _GAP_Y + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13" role="img" aria-labelledby="title">',
        '<title id="title">Gold against KL on the demo: PPO, DPO and best-of-n from one start</title>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *_legend(),
    ]
    for at, (seed, part) in enumerate(frontiers.items()):
        left = _LEFT + at % _COLUMNS * (_PANEL_WIDTH + _GAP_X)
        top = _TOP + at // _COLUMNS * (_PANEL_HEIGHT + _GAP_Y)
        panel = Panel(left, top, _PANEL_WIDTH, _PANEL_HEIGHT, most_kl, low, high)
        parts += [*_axes(panel, seed), *_points(panel, part)]
    note = "Filled: a finished run; hollow: its checkpoints. Bars: 95% intervals over 200 prompts."
    parts.append(text(_LEFT, height - 10, note, FAINT, size=12))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend() -> list[str]:
    parts = [text(_LEFT, 30, "What a nat of KL buys on the demo, by gold", size=17, weight="bold")]
    x = float(_LEFT)
    for words, colour, shape in _METHODS.values():
        parts += [line(x, 56, x + 26, 56, colour, 1.6), mark(x + 13, 56, shape, colour, filled=True)]
        parts.append(text(x + 34, 60.5, words))
        x += 66 + 6.6 * len(words)
    return parts


def _axes(panel: Panel, seed: int) -> list[str]:
    right, floor = panel.left + _PANEL_WIDTH, panel.top + _PANEL_HEIGHT
    parts = [text(panel.left, panel.top - 10, f"Seed {seed}", weight="bold", size=14)]
    step = next(step for step in (0.02, 0.05, 0.1, 0.2, 0.5) if (panel.high - panel.low) / step <= 6)
    for tick in range(int(panel.low / step) - 1, int(panel.high / step) + 2):
        if panel.low <= tick * step <= panel.high:
            y = panel.y(tick * step)
            parts += [
                line(panel.left, y, right, y, GRID),
                text(panel.left - 8, y + 4.5, f"{tick * step:g}", FAINT, "end"),
            ]
    told = -1e9
    for kl in _X_TICKS:
        x = panel.x(kl)
        if kl <= panel.most_kl and x - told > 20:
            parts += [line(x, floor, x, floor + 5, INK), text(x, floor + 19, f"{kl:g}", FAINT, "middle")]
            told = x
    parts.append(line(panel.left, floor, right, floor, INK))
    return [*parts, text(panel.left + _PANEL_WIDTH / 2, floor + 37, "KL to SFT, nats a reply", FAINT, "middle", 12)]


def _points(panel: Panel, part: dict[str, Any]) -> list[str]:
    under, over = [], []
    for (method, _), run in groupby(part["points"], key=lambda one: (one["method"], one["run"])):
        _, colour, shape = _METHODS[method]
        points = list(run)
        under.append(_path(panel, [part["start"], *points], colour, dashed=method == "best-of-n"))
        for one in points:
            x, y = panel.x(one["kl"]["mean"]), panel.y(one["gold"]["mean"])
            under.append(line(x, panel.y(one["gold"]["low"]), x, panel.y(one["gold"]["high"]), colour))
            under.append(line(panel.x(one["kl"]["low"]), y, panel.x(one["kl"]["high"]), y, colour))
            over.append(mark(x, y, shape, colour, filled=one["step"] is None))
    start = part["start"]
    return [*under, *over, mark(panel.x(0), panel.y(start["gold"]["mean"]), "square", INK, filled=True)]


def _path(panel: Panel, points: list[dict[str, Any]], colour: str, dashed: bool) -> str:
    ends = " ".join(f"{panel.x(one['kl']['mean']):.1f},{panel.y(one['gold']['mean']):.1f}" for one in points)
    style = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<polyline points="{ends}" fill="none" stroke="{colour}" stroke-width="1.4" opacity="0.7"{style}/>'
