"""The maths reward, with the traps of answer checking."""

import json
import random
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from posttrain.rewards import BadReferenceError, Completion, MathReward, Score, shared_pool
from posttrain.rewards.math_answers import canonical, gold_answer, quick_verdict
from posttrain.rewards.math_shapes import same_parts, shape

from tests.waiting import GROWING_S

VERDICTS = [
    ("72", r"\boxed{72}", 1),
    (72, r"\boxed{72}", 1),
    (0.5, r"\boxed{\frac{1}{2}}", 1),
    ("72", "The answer is $72$.", 1),
    ("72", "<answer>72.0</answer>", 1),
    ("72", r"\boxed{73}", 0),
    ("72", "it might be 72\nor not", 0),
    ("3", r"first \boxed{5}, but then \boxed{3}", 1),
    ("3", r"first \boxed{3}, but then \boxed{5}", 0),
    ("72", r"<think>\boxed{72}", 0),
    ("1,234", r"\boxed{1234}", 1),
    ("1234", r"\boxed{1{,}234}", 1),
    ("1234", r"\boxed{\$1,234.00}", 1),
    ("work\n#### 1,080", r"\boxed{1080}", 1),
    (r"therefore \boxed{\frac{1}{2}}.", r"\boxed{0.5}", 1),
    ("x^2+1", r"\boxed{1+x^2}", 1),
    ("x^2+1", r"\boxed{1+x^3}", 0),
    (r"\frac12", r"\boxed{1/2}", 1),
    (r"\frac{1}{2}", r"\boxed{\frac{1}{2}", 0),
    ("1/3", r"\boxed{0.333333}", 1),
    ("1/3", r"\boxed{0.33}", 0),
    ("0.3333333", r"\boxed{0.3333334}", 1),
    ("1000000", r"\boxed{1000001}", 0),
    ("x=5", r"\boxed{5}", 1),
    ("5", r"\boxed{x=5}", 1),
    ("10%", r"\boxed{0.1}", 1),
    ("10", r"\boxed{10\%}", 1),
    ("0.1", r"\boxed{10}", 0),
    ("3", r"\boxed{3\text{ cm}}", 1),
    ("90", r"\boxed{90^\circ}", 1),
    (r"\{1,2\}", r"\boxed{\{2,1\}}", 1),
    (r"\{1,2\}", r"\boxed{2,1}", 1),
    (r"\{1,2\}", r"\boxed{(1,2)}", 0),
    ("(1,2)", r"\boxed{\{1,2\}}", 0),
    ("(1,2)", r"\boxed{(2,1)}", 0),
    ("(2,1)", r"\boxed{1,2}", 0),
    ("(1,2)", r"\boxed{1,2}", 1),
    ("(1,2)", r"\boxed{\left(1, 2\right)}", 1),
    ("(1,2)", r"\boxed{[1,2]}", 0),
    ("[0,1)", r"\boxed{[0, 1)}", 1),
    ("blue", r"\boxed{\text{Blue}}", 1),
    ("blue", r"\boxed{lube}", 0),
    ("2**3", r"\boxed{8}", 1),
    ("1e3", r"\boxed{1000}", 1),
    ("−5", r"\boxed{-5}", 1),
    ("x²", r"\boxed{x^2}", 1),
    (r"75\%", r"\boxed{\frac{3}{4}}", 1),
    ("50", r"\boxed{0.5}", 0),
    ("3 cm", r"\boxed{3\text{ m}}", 0),
    ("3 m", r"\boxed{300\text{ cm}}", 1),
    (r"2\sqrt{3}\text{ m}", r"\boxed{200\sqrt{3}\text{ cm}}", 1),
    ("5 km/h", r"\boxed{5\text{ km/h}}", 1),
    ("5 km/h", r"\boxed{5\text{ m/s}}", 0),
    ("18 dollars", r"\boxed{\$18}", 1),
    (r"12\text{ m}^2", r"\boxed{12}", 1),
    ("3 cm", r"\boxed{3\text{ furlongs of string}}", 0),
    (r"\sqrt{2}", r"\boxed{1.414}", 0),
    (r"\pi", r"\boxed{3.14}", 0),
    ("0.0000001", r"\boxed{0}", 0),
    ("1 1/2", r"\boxed{1.5}", 1),
    (r"1.2 \times 10^5", r"\boxed{1.2e5}", 1),
    (r"\emptyset", r"\boxed{\varnothing}", 1),
    ("[1,2)", r"\boxed{1 \le x < 2}", 1),
    ("[1,2)", r"\boxed{1 < x < 2}", 0),
    ("(1,2)", r"\boxed{1<x<2}", 1),
    ("1<x<2", r"\boxed{(1,2)}", 1),
    (r"(-\infty,2]", r"\boxed{x \le 2}", 1),
    (r"x \le 2", r"\boxed{(-\infty, 2]}", 1),
    ("[1,2)", r"\boxed{[1,2]}", 0),
    (r"(-\infty,-1)\cup(1,\infty)", r"\boxed{(1,\infty)\cup(-\infty,-1)}", 1),
    (r"\{1,2,3\}", r"\boxed{\{1,2\}}", 0),
    (r"\{(1,2),(3,4)\}", r"\boxed{(3,4), (1,2)}", 1),
    (r"\{(1,2),(3,4)\}", r"\boxed{(4,3), (1,2)}", 0),
    ("1 and 2", r"\boxed{2, 1}", 1),
    ("7", r"\boxed{7 \text{ or } 8}", 0),
    ("7", r"\boxed{7, 8}", 0),
    (r"\pm 2", r"\boxed{2}", 0),
    (r"\pm 2", r"\boxed{2, -2}", 1),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{bmatrix}1\\2\end{bmatrix}}", 1),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{pmatrix}2\\1\end{pmatrix}}", 0),
    ("3:2", r"\boxed{3:2}", 1),
    ("x=5, x=7", r"\boxed{7, 5}", 1),
]


@pytest.mark.parametrize(("gold", "text", "value"), VERDICTS)
def test_verdict(gold: object, text: str, value: int) -> None:
    assert MathReward(deadline_s=60)(Completion(text=text), {"answer": gold}).value == value


@pytest.mark.parametrize("gold", ["", "]", "}{", r"\sqrt{", "#### ", r"\boxed{", None, True, ["1"]])
def test_a_gold_answer_that_cannot_be_parsed_is_an_error_of_the_data(gold: object) -> None:
    reward = MathReward(deadline_s=60)
    with pytest.raises(BadReferenceError):
        reward.perfect_answer({"answer": gold})
    with pytest.raises(BadReferenceError):
        reward(Completion(text=r"\boxed{x+3}"), {"answer": gold})
    (score,) = reward.score_batch([Completion(text=r"\boxed{x+3}")], [{"answer": gold}])
    assert not score.is_scored and score.reason.startswith("bad reference: ")


def test_another_reference_field_can_be_named() -> None:
    assert MathReward(answer_key="solution")(Completion(text="7"), {"solution": "7"}).value == 1.0
    with pytest.raises(BadReferenceError, match=r"has no 'answer' \(it holds: solution\)"):
        MathReward()(Completion(text="7"), {"solution": "7"})
    with pytest.raises(ValueError, match="deadline_s"):
        MathReward(deadline_s=0)


@pytest.mark.parametrize("bomb", ["10^{10^{10}}", "9^{9^{9^{9}}}", "(" * 400 + "x" + ")" * 400])
def test_a_bomb_costs_one_deadline_and_comes_back_unscored(bomb: str) -> None:
    MathReward(deadline_s=60)(Completion(text=r"\boxed{y}"), {"answer": "z"})  # a worker is up
    started = time.monotonic()
    score = MathReward(deadline_s=1.0)(Completion(text=rf"\boxed{{{bomb}}}"), {"answer": "7"})
    assert not score.is_scored and "deadline of 1 s" in score.reason
    assert time.monotonic() - started < 60  # the deadline and perhaps the start of a process on a busy machine


def test_a_bomb_in_a_batch_leaves_the_others_scored() -> None:
    texts = [r"\boxed{x+1}", r"\boxed{10^{10^{10}}}", r"\boxed{1+x}", r"\boxed{x+2}"]
    for deadline_s in GROWING_S[1:]:
        before = shared_pool().num_timeouts
        reward = MathReward(deadline_s=deadline_s)
        scores = reward.score_batch([Completion(text=t) for t in texts], [{"answer": "x + 1"}] * 4)
        num_timeouts = shared_pool().num_timeouts - before
        if num_timeouts == 1:
            break
    assert [score.value for score in scores] == [1.0, None, 1.0, 0.0] and num_timeouts == 1


def test_a_thread_gets_the_same_verdicts_as_the_main_thread() -> None:
    reward = MathReward(deadline_s=60)
    completions = [Completion(text=text) for _, text, _ in VERDICTS]
    references = [{"answer": gold} for gold, _, _ in VERDICTS]
    in_thread: list[Score] = []
    thread = threading.Thread(target=lambda: in_thread.extend(reward.score_batch(completions, references)))
    thread.start()
    thread.join()
    assert in_thread == reward.score_batch(completions, references)
    assert [score.value for score in in_thread] == [value for _, _, value in VERDICTS]


def test_gsm8k_references_earn_full_marks_and_shuffled_ones_almost_none(shared_data: Path) -> None:
    rows = [json.loads(line) for line in (shared_data / "gsm8k" / "train_500.jsonl").read_text().splitlines()]
    assert len(rows) == 500
    reward = MathReward(deadline_s=60)
    own = reward.score_batch([Completion(text=row["answer"]) for row in rows], rows)
    assert [score.value for score in own] == [1.0] * 500
    assert all(reward(Completion(text=reward.perfect_answer(row)), row).value == 1.0 for row in rows)
    shuffled = random.Random(0).sample(rows, len(rows))
    foreign = reward.score_batch([Completion(text=row["answer"]) for row in shuffled], rows)
    assert sum(score.value or 0.0 for score in foreign) < 25  # small numbers coincide now and then


def test_shapes_tell_pairs_sets_and_lists_apart() -> None:
    assert [shape(a) for a in ("(1,2)", "[0,1)", r"\{1,2\}", "1, 2", "x+1", r"(1,2) \cup (3,4)", "f(1,2)", "")] == [
        "ordered", "ordered", "set", "list", "single", "single", "single", "single",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("[1,2)", "[1.0, 4/2)", True),
        ("[1,2)", "[1,3)", False),
        ("[1,2)", "(1,2)", False),
        ("[1,2)", "[1,2]", False),
        (r"(-\infty,2]", r"[-\infty,2]", None),
        (r"(-\infty,2]", r"(-\infty,2.0]", True),
        ("(1,2,3)", "(1,2)", False),
        ("(x,2)", "(x,2.0)", True),
        ("(x,2)", "(y,2)", None),
        ("(x,2)", "(y,3)", False),
        (r"\{1,2\}", r"\{2,1,2\}", True),
        (r"\{1,2\}", "2,1", True),
        (r"\{1,2\}", r"\{1,3\}", False),
        (r"\{1,x\}", r"\{1,y\}", None),
        (r"\{(1,2),(3,4)\}", r"\{(3,4),(1,2)\}", True),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1 & 2 \\ 3.0 & 8/2\\\end{bmatrix}", True),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}", False),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", False),
        (r"\begin{pmatrix}x\end{pmatrix}", r"\begin{pmatrix}y\end{pmatrix}", None),
        ("x+1", "1+x", None),
        ("(1,2)", r"\{1,2\}", None),
    ],
)
def test_parts_decide_where_they_can(gold: str, answer: str, verdict: bool | None) -> None:
    assert same_parts(gold, answer, quick_verdict) is verdict


def test_parts_say_what_algebra_says() -> None:
    """Where the quick comparison decides, math-verify gives the same verdict on the same two answers.

    But for intervals that end before they begin, which are all the empty set to it.
    """
    rng = random.Random(0)
    numbers = [["-1"], ["0.5", r"\frac{1}{2}"], ["1", "1.0"], ["3"]]
    forms = ["({},{})", "[{},{})", r"\{{{},{}\}}", r"\begin{{pmatrix}}{}&{}\end{{pmatrix}}"]

    def written(form: str) -> str:
        return form.format(*(rng.choice(ways) for ways in sorted(rng.sample(numbers, k=2), key=numbers.index)))

    pairs = [(written(form), written(form)) for form in forms * 25]
    outcomes = shared_pool().run_many("posttrain.rewards.equivalence:compare", pairs, deadline_s=60)
    told = [same_parts(gold, given, quick_verdict) for gold, given in pairs]
    assert [pair for pair, quick, slow in zip(pairs, told, outcomes, strict=True) if quick != (slow == "equal")] == []
    assert 5 < sum(map(bool, told)) < len(told) - 5


def test_values_at_a_point_tell_expressions_apart_and_never_equal_ones() -> None:
    equal = [(r"\ln 4", r"2\ln 2"), (r"\sqrt{8}", r"2\sqrt{2}"), ("(x+1)^2", "x^2+2x+1"), (r"\frac{a}{b}", "a/b")]
    equal += [(r"\sin^2 x+\cos^2 x", "1"), ("0.3333333", "1/3"), ("x=5", "5"), (r"\log_2 8", "3")]
    different = [(r"\ln 4", r"2\ln 3"), ("x+1", "x+2"), ("x+1", "y+1"), (r"\sqrt{2}", "1.4142"), (r"\sqrt{-4}", "2")]
    jobs = [*equal, *different]
    outcomes = shared_pool().run_many("posttrain.rewards.equivalence:compare", jobs, deadline_s=60)
    assert outcomes == ["equal"] * len(equal) + ["different"] * len(different)


@given(st.text(alphabet="\\${}()[],.0123456789+-*/^xe%# boxedtextfrac", max_size=80), st.text(max_size=40))
def test_the_part_without_algebra_never_raises_and_is_reflexive(gold: str, answer: str) -> None:
    gold_answer(gold)
    assert quick_verdict(canonical(gold), canonical(gold)) is True
    assert quick_verdict(canonical(gold), canonical(answer)) in (True, False, None)
    shape(answer)


@given(st.integers(-(10**12), 10**12))
def test_thousands_separators_do_not_change_a_number(number: int) -> None:
    assert quick_verdict(canonical(str(number)), canonical(f"${number:,}$.")) is True
    assert quick_verdict(canonical(str(number)), canonical(f"{number + 1:,}")) is False


@settings(max_examples=25, deadline=None)
@given(st.text(alphabet="\\{}()[]0123456789+-*/=xy,%", max_size=25))
def test_any_answer_gets_a_verdict_or_is_unscored(answer: str) -> None:
    score = MathReward(deadline_s=3.0)(Completion(text=f"<answer>{answer}</answer>"), {"answer": "x+1"})
    assert score.value in (0.0, 1.0, None)
