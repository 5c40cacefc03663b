"""The reward-KL curves of benchmarks/sentiment.py as an SVG: two panels, drawn by hand."""

import math
from typing import Any

from svg import FAINT, GRID, INK, Panel, line, mark, text

# Okabe and Ito's colours: told apart by those who see fewer, on white and in grey; and a shape each.
_ARMS = {
    "ppo": ("PPO", "#0072B2", "circle"),
    "dpo": ("DPO", "#D55E00", "triangle"),
    "best-of-n": ("best of", "#595959", "square"),
}
_PANELS = {"proxy": "By the proxy, which is the reward", "gold": "By the gold, fitted on other sentences"}
KNOBS = {"ppo": "kl_coef", "dpo": "beta"}
_X_TICKS = (0, 0.5, 1, 2, 4, 8, 16, 32, 64)
_WIDTH, _HEIGHT = 980, 560
_TOP, _BOTTOM, _LEFT, _PANEL, _GAP = 112, 92, 66, 410, 62
_ZERO = "#b0b0b0"  # as likely positive as negative


def draw(points: list[dict[str, Any]], seed: int) -> str:
    """The figure of one seed's points. Each run begins at the start, which is best-of-1."""
    start = next(point for point in points if point["setting"] == 1 and point["arm"] == "best-of-n")
    most_kl = max(point["kl"]["high"] for point in points) * 1.08
    scores = [point[name][end] for point in points for name in _PANELS for end in ("low", "high")]
    low, high = min(scores), max(scores)
    margin, height = 0.06 * (high - low), _HEIGHT - _BOTTOM - _TOP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13" role="img" aria-labelledby="title">',
        '<title id="title">Reward against KL: PPO, DPO and best-of-n from one start</title>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        *_legend(points, seed),
    ]
    for at, name in enumerate(_PANELS):
        panel = Panel(_LEFT + at * (_PANEL + _GAP), _TOP, _PANEL, height, most_kl, low - margin, high + margin)
        parts += [*_axes(panel, name, first=at == 0), *_curves(panel, name, points, start)]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _axes(panel: Panel, name: str, first: bool) -> list[str]:
    right, floor = panel.left + _PANEL, _HEIGHT - _BOTTOM
    parts = [text(panel.left, _TOP - 14, _PANELS[name], weight="bold", size=14)]
    step = next(step for step in (0.1, 0.2, 0.25, 0.5, 1, 2, 5) if (panel.high - panel.low) / step <= 8)
    tick = step * math.ceil(panel.low / step) + 0.0  # no minus zero
    while tick <= panel.high:
        y = panel.y(tick)
        parts.append(line(panel.left, y, right, y, _ZERO if tick == 0 else GRID))
        parts.append(text(panel.left - 8, y + 4.5, f"{tick:g}", FAINT, "end"))
        tick = round(tick + step, 6)
    for kl in _X_TICKS:
        if kl <= panel.most_kl:
            x = panel.x(kl)
            parts += [line(x, floor, x, floor + 5, INK), text(x, floor + 20, f"{kl:g}", FAINT, "middle")]
    parts += [line(panel.left, floor, right, floor, INK)]
    label = "KL(policy || start), nats a reply, square-root scale"
    parts.append(text(panel.left + _PANEL / 2, floor + 46, label, anchor="middle"))
    if first:
        x, y = panel.left - 46, (_TOP + floor) / 2
        label = "mean score of held-out replies, log-odds of positive"
        parts.append(f'<g transform="rotate(-90 {x} {y})">{text(x, y, label, anchor="middle")}</g>')
    return parts


def _curves(panel: Panel, name: str, points: list[dict[str, Any]], start: dict[str, Any]) -> list[str]:
    under, over = [], []
    for arm, (_, colour, shape) in reversed(_ARMS.items()):
        mine = [point for point in points if point["arm"] == arm]
        settings = [None] if arm == "best-of-n" else list(dict.fromkeys(point["setting"] for point in mine))
        for setting in settings:
            run = [point for point in mine if setting is None or point["setting"] == setting]
            under += [_path(panel, name, run, colour), _path(panel, name, [start, run[0]], colour, dashed=True)]
            for point in run:
                x, y = panel.x(point["kl"]["mean"]), panel.y(point[name]["mean"])
                low, high = (panel.y(point[name][end]) for end in ("low", "high"))
                left, right = (panel.x(point["kl"][end]) for end in ("low", "high"))
                under += [line(x, low, x, high, colour), line(left, y, right, y, colour)]
                over.append(mark(x, y, shape, colour, filled=point["last"]))
    return under + over


def _legend(points: list[dict[str, Any]], seed: int) -> list[str]:
    parts = [text(_LEFT, 30, "What a nat of KL buys: PPO, DPO and best-of-n from one start", size=17, weight="bold")]
    x = float(_LEFT)
    for arm, (label, colour, shape) in _ARMS.items():
        settings = list(dict.fromkeys(point["setting"] for point in points if point["arm"] == arm))
        if arm in KNOBS:
            label = f"{label}, {KNOBS[arm]} {' and '.join(f'{setting:g}' for setting in settings)}"
        else:
            label = f"{label} {settings[0]}, {settings[1]}, ... {settings[-1]}, KL at its upper bound"
        parts += [line(x, 56, x + 26, 56, colour, 1.6), mark(x + 13, 56, shape, colour, filled=True)]
        parts.append(text(x + 34, 60.5, label))
        x += 62 + 6.4 * len(label)
    note = f"Seed {seed}. Filled: a finished run; hollow: its checkpoints; dotted: nothing measured between. "
    note += "Bars: 95% intervals over prompts."
    return [*parts, text(_WIDTH - 36, _HEIGHT - 12, note, FAINT, "end", size=12)]


def _path(panel: Panel, name: str, points: list[dict[str, Any]], colour: str, dashed: bool = False) -> str:
    """A line through points; dashed where nothing lies between two of them to say how it bends."""
    ends = " ".join(f"{panel.x(p['kl']['mean']):.1f},{panel.y(p[name]['mean']):.1f}" for p in points)
    style = 'stroke-dasharray="3 4" opacity="0.6"' if dashed else 'opacity="0.75"'
    return f'<polyline points="{ends}" fill="none" stroke="{colour}" stroke-width="1.6" {style}/>'
