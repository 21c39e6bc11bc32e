"""Units and currencies: what each name measures, in base units.

Symbols keep their case (mW is not MW) unless only one reading of the letters exists (KM is km). Volumes are cubic
metres, energies newton metres; degrees Celsius and Fahrenheit, months, each currency and angles stand for themselves.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cache

_SIZES = {
    "1 m": "meter meters metre metres 米 公尺",
    "1000 m": "公里 千米",
    "1/100 m": "厘米 公分",
    "1/1000 m": "毫米",
    "254/10000 m": "in inch inches 英寸",
    "3048/10000 m": "ft foot feet 英尺",
    "9144/10000 m": "yd yard yards",
    "1609344/1000 m": "mi mile miles 英里",
    "1852 m": "nmi",
    "40468564224/10000000 m^2": "acre acres",
    "10000 m^2": "ha hectare hectares 公顷",
    "1/1000 kg": "gram grams 克",
    "1 kg": "千克 公斤",
    "1/2 kg": "斤",
    "1000 kg": "ton tons tonne tonnes 吨",
    "45359237/100000000 kg": "lb lbs pound pounds",
    "28349523125/1000000000000 kg": "oz ounce ounces",
    "1 s": "sec secs second seconds 秒",
    "60 s": "min mins minute minutes 分钟",
    "3600 s": "h hr hrs hour hours 小时 时",
    "86400 s": "day days 天 日",
    "604800 s": "wk week weeks 周 星期",
    "1 month": "month months 月 个月",
    "12 month": "yr yrs year years 年 岁",
    "1/1000 m^3": "l liter liters litre litres 升",
    "1/1000000 m^3": "毫升 cc",
    "3785411784/1000000000000 m^3": "gal gallon gallons",
    "946352946/1000000000000 m^3": "qt quart quarts",
    "473176473/1000000000000 m^3": "pint pints",
    "1609344/3600000 m s^-1": "mph",
    "1000/3600 m s^-1": "kmh kph kmph",
    "1 m kg s^-2": "newton newtons 牛 牛顿",
    "1 m^2 kg s^-2": "joule joules 焦 焦耳",
    "1 m^2 kg s^-3": "watt watts 瓦 瓦特",
    "1 kg m^-1 s^-2": "pascal pascals 帕",
    "1 s^-1": "hertz 赫兹",
    "1 amp": "ampere amperes amp amps 安培",
    "1 m^2 kg s^-3 amp^-1": "volt volts 伏 伏特",
    "1 m^2 kg s^-3 amp^-2": "ohm ohms 欧姆",
    "1 mole": "mole moles 摩尔",
    "1 kelvin": "K kelvin kelvins",
    "1 celsius": "°C ℃ 摄氏度",
    "1 fahrenheit": "°F ℉ 华氏度",
    "1 angle": "° degree degrees deg 度",
    "1 radian": "rad radian radians 弧度",
    "1 dollar": "$ dollar dollars usd 美元",
    "1/100 dollar": "cent cents ¢",
    "1 euro": "€ euro euros eur 欧元",
    "1 sterling": "£ gbp 英镑",
    "1/100 sterling": "pence penny",
    "1 yuan": "¥ yuan rmb cny 元 块 圆 人民币 块钱",
    "1/10 yuan": "角",
    "1 yen": "yen jpy 円 日元",
    "1 rupee": "₹ rupee rupees rs inr",
    "1 won": "₩ won krw",
}
"""Size in base units, and the names of what has it."""
_SYMBOLS = {
    "m": "1 m",
    "g": "1/1000 kg",
    "s": "1 s",
    "L": "1/1000 m^3",
    "l": "1/1000 m^3",
    "N": "1 m kg s^-2",
    "J": "1 m^2 kg s^-2",
    "Wh": "3600 m^2 kg s^-2",
    "eV": "1 electronvolt",
    "cal": "1 calorie",
    "W": "1 m^2 kg s^-3",
    "Pa": "1 kg m^-1 s^-2",
    "Hz": "1 s^-1",
    "A": "1 amp",
    "V": "1 m^2 kg s^-3 amp^-1",
    "Ω": "1 m^2 kg s^-3 amp^-2",
    "mol": "1 mole",
}
"""Symbols that take a prefix."""
_PREFIXES = {"": 0, "G": 9, "M": 6, "k": 3, "m": -3, "µ": -6, "μ": -6, "n": -9}
"""No p, for 3 pm is a time of day."""
_SMALL_PREFIXES = {"d": -1, "c": -2}
"""For metres, grams and litres alone."""
_SPELLED_PREFIXES = {"mega": 6, "kilo": 3, "centi": -2, "milli": -3, "micro": -6, "nano": -9}
_SPELLED = (
    *("meter", "metre", "gram", "liter", "litre", "second", "watt", "joule", "newton", "pascal", "hertz", "volt"),
    *("ampere", "amp", "ohm", "calorie"),
)
AMBIGUOUS = (frozenset({"sterling", "kg"}), frozenset({"yuan", "yen"}))
"""Base units that share a name: 5 pounds are £5 or a mass, ¥ is the sign of two currencies."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What one name stands for."""

    factor: Fraction
    """How many base units it is."""
    dimension: tuple[tuple[str, int], ...]
    """Base units with their exponents, in alphabetical order."""


def unit_named(name: str) -> Unit | None:
    """The unit of that name or symbol; None where there is none."""
    exact, any_case = _names()
    name = name.removesuffix(".")
    return exact.get(name) or (any_case.get(name.casefold()) if len(name) > 1 else None)


@cache
def han_units() -> tuple[str, ...]:
    """The Chinese names, longest first."""
    return tuple(sorted((name for name in _names()[0] if "\u4e00" <= name[0] <= "\u9fff"), key=len, reverse=True))


@cache
def _names() -> tuple[dict[str, Unit], dict[str, Unit]]:
    """Units by name, and those whose name means the same in any case by the case-folded name."""
    exact: dict[str, Unit] = {}
    for size, names in _SIZES.items():
        exact |= dict.fromkeys(names.split(), _unit(size))
    exact["calorie"] = exact["calories"] = _unit("1 calorie")
    for symbol, size in _SYMBOLS.items():
        for prefix, exponent in (_PREFIXES | (_SMALL_PREFIXES if symbol in "mgLl" else {})).items():
            exact.setdefault(prefix + symbol, _unit(size, exponent))
    for name in _SPELLED:
        for prefix, exponent in _SPELLED_PREFIXES.items():
            base = exact[name]
            unit = Unit(base.factor * Fraction(10) ** exponent, base.dimension)
            exact |= {prefix + name: unit, prefix + name + "s": unit}
    readings: dict[str, set[Unit]] = {}
    for name, unit in exact.items():
        readings.setdefault(name.casefold(), set()).add(unit)
    return exact, {name: units.pop() for name, units in readings.items() if len(units) == 1}


def _unit(size: str, exponent: int = 0) -> Unit:
    factor, *bases = size.split()
    powers = (base.partition("^") for base in bases)
    dimension = tuple(sorted((name, int(power or 1)) for name, _, power in powers))
    return Unit(Fraction(factor) * Fraction(10) ** exponent, dimension)
