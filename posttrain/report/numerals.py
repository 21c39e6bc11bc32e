"""How numbers and durations are written for people, in the page and in the terminal."""

import math
from collections.abc import Sequence

MINUS = "\N{MINUS SIGN}"
ABSENT = "\N{EN DASH}"


def number(value: float | None) -> str:
    """About three significant digits: 0.738, 1.00, 12.4, 1,204, 38.2k, 1.5e-4. What is no number is a dash."""
    if value is None or not math.isfinite(value):
        return ABSENT
    size = abs(value)
    if size == 0:
        text = "0"
    elif size >= 999_500:
        text = f"{size:.2e}" if size >= 1e12 else next(f"{size / d:.3g}{s}" for d, s in _SCALES if size >= d * 0.9995)
    elif size >= 9_999.5:
        text = f"{size / 1000:.3g}k"
    elif size >= 99.95:
        text = f"{size:,.0f}"
    elif size >= 9.995:
        text = f"{size:.1f}"
    elif size >= 0.9995:
        text = f"{size:.2f}"
    elif size >= 0.0095:
        text = f"{size:.3f}"
    elif size >= 0.00095:
        text = f"{size:.4f}"
    else:
        mantissa, exponent = f"{size:.1e}".split("e")
        text = f"{mantissa.removesuffix('.0')}e{MINUS if exponent[0] == '-' else ''}{int(exponent[1:])}"
    return MINUS + text if value < 0 else text


_SCALES = ((1e9, "G"), (1e6, "M"))


def tick_labels(marks: Sequence[float]) -> list[str]:
    """Round numbers of one axis, written alike, without trailing zeros: 0, 0.5, 1 or 0, 5e-4, 1e-3."""
    if 0 < max(abs(m) for m in marks) < 0.0095:
        powers = [f"{m:.2e}".split("e") for m in marks]
        labels = [f"{m.rstrip('0').rstrip('.')}e{int(e)}" if float(m) else "0" for m, e in powers]
        return [label.replace("-", MINUS) for label in labels]
    return [t.rstrip("0").rstrip(".") if "." in t and "e" not in t else t for t in map(number, marks)]


def change(value: float | None) -> str:
    """A number with its sign always written: +0.326."""
    text = number(value)
    return f"+{text}" if value is not None and math.isfinite(value) and value > 0 else text


def duration(seconds: float | None) -> str:
    """0.4 s, 12.3 s, 3 min 20 s, 1 h 02 min, 2 d 4 h."""
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def seconds(value: float | None) -> str:
    """Short times to three digits: 2 ms, 0.709 s, 12.3 s; then as `duration` writes them."""
    if value is None or not math.isfinite(value) or value >= 59.95:
        return duration(value)
    return f"{1000 * value:.0f} ms" if 0 < value < 0.0995 else f"{number(value)} s"


def as_number(value: object) -> float | None:
    """The value if it is a finite number (not a bool), else None: files hold null where a number was not finite."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            converted = float(value)
        except OverflowError:
            return None
        return converted if math.isfinite(converted) else None
    return None
