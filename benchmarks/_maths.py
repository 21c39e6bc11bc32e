"""Completions with known verdicts for the maths benchmark: worked answers, LaTeX-heavy ones, and hostile ones."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from pathlib import Path

GSM8K = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "gsm8k" / "train_500.jsonl"
"""The data beside a development checkout; made problems take its place where it is absent."""
ANSWERS_PER_PROBLEM = 8
"""As the group of one prompt in RL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One completion."""

    text: str
    gold: str
    """The reference's answer, in LaTeX without delimiters."""
    is_right: bool | None
    """None for hostile answers, which must not count as right."""


def benign(count: int) -> list[Case]:
    """Half of them about GSM8K's problems, half about made ones with heavy LaTeX; five of eight are right."""
    rng = random.Random(0)
    worked, made = _worked(rng), _latex(rng)
    cases: list[Case] = []
    while len(cases) < count:
        cases += next(worked)
        cases += next(made)
    return cases[:count]


def hostile(count: int) -> list[Case]:
    """Answers that take a computer algebra system for ever, or its memory, or its stack; no two the same."""
    cases = []
    for number in range(count):
        depth = 3 + number // 10
        tower = "9^{" * depth + "9" + "}" * depth
        answer = (
            f"10^{{10^{{{10 + number}}}}}",
            tower,
            f"{{{10**6 + number}}}!^{{{10**6}}}",
            "(" * (400 + number) + "x" + ")" * (400 + number),
            r"\frac{1}{" * (150 + number) + "x" + "}" * (150 + number),
            rf"(x+y+z+w+1)^{{{3000 + number}}}",
            rf"\sum_{{n=1}}^{{{10**9 + number}}} n^{{n}}",
            r"\sqrt{" * (200 + number) + "2" + "}" * (200 + number),
            "+".join(f"x_{{{i}}}^{{{i}}}" for i in range(60)) + f"+{number}",
            rf"\int_0^{{{number + 1}}} e^{{-x^{{x^{{x}}}}}} dx",
        )[number % 10]
        text = rf"Let me see. Therefore the answer is $\boxed{{{answer}}}$."
        cases.append(Case(text=text, gold=("7", r"\sqrt{2}+1", "x^2+1")[number % 3], is_right=None))
    return cases


def _worked(rng: random.Random) -> Iterator[list[Case]]:
    rows = [json.loads(line) for line in GSM8K.read_text().splitlines()] if GSM8K.is_file() else []
    position = 0
    while True:
        if rows:
            solution, _, gold = rows[position % len(rows)]["answer"].rpartition("####")
        else:
            a, b = rng.randint(10, 999), rng.randint(10, 999)
            solution, gold = f"There are {a} and {b} of them, which makes {a + b} in all.\n" * 3, str(a + b)
        position += 1
        number = int(gold.strip().replace(",", ""))
        right = (str(number), f"{number:,}", f"{number}.00", f"{number}", rf"{2 * number}/2")
        wrong = (str(number + 1), str(number * 10 + 7), rf"\frac{{{number}}}{{{3}}}")
        yield _group(solution.strip(), str(number), right, wrong)


def _latex(rng: random.Random) -> Iterator[list[Case]]:
    while True:
        a, b, c = rng.randint(2, 19), rng.randint(2, 19), rng.randint(2, 19)
        yield _group(_prose("fraction"), rf"\frac{{{a}\sqrt{{{b}}}}}{{{c}}}", *_surd(a, b, c))
        yield _group(
            _prose("polynomial"),
            f"x^2+{a + b}x+{a * b}",
            (
                f"(x+{a})(x+{b})",
                f"x^2+{a + b}x+{a * b}",
                f"{a * b}+{a + b}x+x^2",
                rf"x(x+{a + b})+{a * b}",
                f"(x+{b})(x+{a})",
            ),
            (f"x^2+{a + b}x+{a * b + 1}", f"x^2-{a + b}x+{a * b}", f"(x-{a})(x-{b})"),
        )
        top = a + b
        yield _group(
            _prose("interval"),
            rf"\left[{a},{top}\right)",
            (rf"[{a},{top})", rf"\left[{a}, {top}\right)", rf"[{a}.0,{top})", rf"{a} \le x < {top}", f"[{a},{top})"),
            (rf"[{a},{top}]", rf"({a},{top})", rf"[{a},{top + 1})"),
        )
        yield _group(
            _prose("set"),
            rf"\{{{a},{a + b},{a + b + c}\}}",
            (
                rf"\{{{a + b},{a},{a + b + c}\}}",
                rf"\{{{a},{a + b},{a + b + c}\}}",
                rf"\left\{{{a + b + c},{a + b},{a}\right\}}",
                f"{a},{a + b},{a + b + c}",
                f"{a + b + c},{a},{a + b}",
            ),
            (rf"\{{{a},{a + b}\}}", rf"({a},{a + b},{a + b + c})", rf"\{{{a},{a + b},{a + b + c + 1}\}}"),
        )
        matrix = r"\begin{{pmatrix}}{} & {} \\ {} & {}\end{{pmatrix}}"
        yield _group(
            _prose("matrix"),
            matrix.format(a, b, c, 1),
            (
                matrix.format(a, b, c, 1),
                matrix.format(a, b, c, 1).replace("pmatrix", "bmatrix"),
                matrix.format(f"{2 * a}/2", b, c, 1),
                matrix.format(a, b, c, "1.0"),
                matrix.format(a, rf"\frac{{{2 * b}}}{{2}}", c, 1),
            ),
            (matrix.format(a, c, b + 1, 1), matrix.format(a, b, c, 2), matrix.format(b + a, b, c, 1)),
        )
        yield _group(
            _prose("logarithm"),
            rf"\ln {a**2}",
            (rf"2\ln {a}", rf"\ln({a}^2)", rf"\ln {a**2}", rf"\ln {a} + \ln {a}", rf"\frac{{4\ln {a}}}{{2}}"),
            (rf"\ln {a}", rf"\ln {a**2 + 1}", rf"3\ln {a}"),
        )


def _surd(a: int, b: int, c: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    divisor = gcd(a, c)
    short = rf"\frac{{{a // divisor}\sqrt{{{b}}}}}{{{c // divisor}}}"
    right = (
        short,
        rf"\dfrac{{{a}}}{{{c}}}\sqrt{{{b}}}",
        rf"\frac{{\sqrt{{{a * a * b}}}}}{{{c}}}",
        rf"\frac{{{a * b}}}{{{c}\sqrt{{{b}}}}}",
        rf"{a}\sqrt{{{b}}}/{c}",
    )
    wrong = (rf"\frac{{{a + 1}\sqrt{{{b}}}}}{{{c}}}", rf"\frac{{{a}\sqrt{{{b + 1}}}}}{{{c}}}", rf"{a}\sqrt{{{b}}}")
    return right, wrong


def _group(solution: str, gold: str, right: tuple[str, ...], wrong: tuple[str, ...]) -> list[Case]:
    answers = [(answer, True) for answer in right] + [(answer, False) for answer in wrong]
    assert len(answers) == ANSWERS_PER_PROBLEM
    return [
        Case(text=f"{solution}\n\nTherefore the answer is $\\boxed{{{answer}}}$.", gold=gold, is_right=is_right)
        for answer, is_right in answers
    ]


def _prose(kind: str) -> str:
    """A derivation with formulas that no verifier may take for the answer."""
    line = r"We look for the {}. Let $f(x) = x^{{{}}} + \frac{{{}}}{{{}}}$, so $f'(x) = {}x^{{{}}}$."
    return "\n".join(line.format(kind, i, i, i + 1, i, i - 1) for i in (3, 5, 7))
