"""Whole numbers in words: `one hundred and five`, `two million`, `一百零五`, read by their grammar or not at all.

`three four`, `五百三` and `三四` follow no grammar: they may be a hedge or a list, and are read as nothing.
"""

_ONES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_TEENS = ("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
NUMBER_WORDS = {word: number for number, word in enumerate(_ONES + _TEENS)}
"""`zero` to `nineteen`."""
TENS_WORDS = {word: 10 * tens for tens, word in enumerate(_TENS, 2)}
"""`twenty` to `ninety`."""
SCALE_WORDS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
"""Word -> power of ten."""
HAN_DIGITS = dict(zip("零一二两兩三四五六七八九", (0, 1, 2, 2, 2, 3, 4, 5, 6, 7, 8, 9), strict=True))
HAN_UNITS = {"十": 10, "百": 100, "千": 1000}
HAN_SCALES = {"万": 4, "萬": 4, "亿": 8, "億": 8}
"""Character -> power of ten."""

_WORD = "|".join((*TENS_WORDS, *sorted(NUMBER_WORDS, key=len, reverse=True)))
_SCALE = f"(?:{'|'.join(SCALE_WORDS)})s?"
ENGLISH_NUMBER = (
    rf"(?i)\b(?P<words>(?:{_WORD}|an?(?=\s{_SCALE}\b))(?:(?:\s|-|\sand\s)(?:{_WORD}|{_SCALE}))*)\b"
    r"(?P<percent>\s?(?:%|per\s?cent\b))?"
)
"""A run of number words, which need not follow the grammar."""
MEASURES = "个個只隻人位条條张張把辆輛本块塊名头頭匹颗顆朵棵座台瓶杯根支次种種样樣架艘双雙对對件"
_HAN = "".join(HAN_DIGITS)
HAN_NUMBER = rf"(?<![\d{_HAN}十百千万萬亿億])(?P<han>[{_HAN}十][{_HAN}十百千万萬亿億]*)(?=[{MEASURES}]|[。.]?\Z)"
"""A run of Chinese numerals before a measure word or at the end; elsewhere they stand in words (一致, 十分)."""


def english_number(words: str) -> int | None:
    """The number that a run of English words writes; None where they write none."""
    total = group = 0
    scale_before = 1000
    previous = ""
    tokens = words.lower().replace("-", " ").split()
    for place, token in enumerate(tokens):
        name = token if token in NUMBER_WORDS or token in TENS_WORDS else token.removesuffix("s")
        if token == "and":
            if previous not in SCALE_WORDS or place == len(tokens) - 1:
                return None
        elif token in ("a", "an"):
            group = 1
        elif name == "hundred":
            if not 0 < group < 100:
                return None
            group *= 100
        elif name in SCALE_WORDS:
            if not group or SCALE_WORDS[name] >= scale_before:
                return None
            total, group, scale_before = total + group * 10 ** SCALE_WORDS[name], 0, SCALE_WORDS[name]
        else:
            value = TENS_WORDS.get(name, NUMBER_WORDS.get(name, 0))
            fits = group % 100 == 0 or (value < 10 and group % 100 >= 20 and group % 10 == 0)
            if not fits or (value == 0 and len(tokens) > 1) or (previous in ("a", "an")):
                return None
            group += value
        previous = name
    return total + group


def han_number(numerals: str) -> int | None:
    """The number that Chinese numerals write; None where they write none."""
    if numerals == "零":
        return 0
    for scale in ("亿億", "万萬"):
        marks = [place for place, numeral in enumerate(numerals) if numeral in scale]
        if marks:
            place = marks[-1]
            above, below = han_number(numerals[:place]), _han_below(numerals[place + 1 :], numerals[place])
            unit = 10 ** HAN_SCALES[numerals[place]]
            return above * unit + below if above and above < unit and below is not None else None
    return _han_section(numerals)


def _han_below(numerals: str, mark: str) -> int | None:
    """What follows 万 or 亿: nothing is 0; a number with less than all its digits must begin with 零."""
    if not numerals:
        return 0
    value = han_number(numerals.removeprefix("零"))
    limit = 10 ** HAN_SCALES[mark]
    if not value or value >= limit:
        return None
    return value if numerals.startswith("零") == (value < limit // 10) else None


def _han_section(numerals: str) -> int | None:
    """The value, below ten thousand, of digits each before its unit; a unit that is left out must be filled by 零."""
    total, unit_before, digit, is_filled = 0, 0, 0, False
    for numeral in numerals:
        value = HAN_DIGITS.get(numeral, 0)
        if numeral == "零":
            if is_filled or digit or not total:
                return None
            is_filled = True
        elif value:
            if digit:
                return None
            digit = value
        else:
            unit = HAN_UNITS[numeral]
            starts = not total and not is_filled
            if (not digit and not (unit == 10 and starts)) or (total and unit >= unit_before):
                return None
            if total and (unit * 10 != unit_before) != is_filled:
                return None
            total, unit_before, digit, is_filled = total + (digit or 1) * unit, unit, 0, False
    if digit and total and (unit_before != 10) != is_filled:
        return None
    return total + digit if digit or (total and not is_filled) else None
