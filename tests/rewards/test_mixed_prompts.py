"""Prompts in two scripts: either of their languages may answer, a third may not."""

import pytest
from posttrain.rewards import Completion, LanguagePenalty

ENGLISH = "Plants turn light into sugar and let oxygen out. That is what we call the light reaction of the leaf."
CHINESE = "植物利用光能把二氧化碳和水变成糖，并放出氧气。这就是我们所说的光合作用。"
RUSSIAN = "Растения превращают свет в сахар и выделяют кислород. Это и называется реакцией на свет."
ERROR = "TypeError: NoneType object is not subscriptable in line 3 of main.py when calling the parse function"


@pytest.mark.parametrize(
    "prompt",
    [
        "What is 光合作用?",
        f"这个 bug 怎么修 ({ERROR})?",
        "图中有几只猫？Answer with a single letter.",
        "请解释 how plants make sugar 这句话",
    ],
)
def test_a_prompt_in_two_scripts_may_be_answered_in_either_and_in_no_third(prompt: str) -> None:
    def penalty(text: str) -> float | None:
        return LanguagePenalty()(Completion(text=text, prompt=prompt), {}).value

    assert (penalty(ENGLISH), penalty(CHINESE), penalty(RUSSIAN)) == (0.0, 0.0, -1.0)


@pytest.mark.parametrize(
    ("prompt", "right", "wrong"),
    [
        ("What does the sign with 猫 in the window say about plants?", ENGLISH, CHINESE),  # one character is a term
        ("这个 bug 是怎么回事？", CHINESE, ENGLISH),
        ("使用 Transformer 和 PyTorch 的时候要注意什么？", CHINESE, ENGLISH),  # names
        ('What does the term "光合作用" mean, and where do we meet it every day?', ENGLISH, CHINESE),  # a quotation
        ("What is photosynthesis (光合作用) good for?", ENGLISH, CHINESE),
    ],
)
def test_a_term_a_name_or_a_quotation_makes_no_mixed_prompt(prompt: str, right: str, wrong: str) -> None:
    assert LanguagePenalty()(Completion(text=right, prompt=prompt), {}).value == 0.0
    assert LanguagePenalty()(Completion(text=wrong, prompt=prompt), {}).value != 0.0


def test_japanese_and_korean_write_in_two_scripts_of_their_own() -> None:
    japanese = "画像には猫が何匹いますか？それぞれの色も教えてください。"
    said = Completion(text=ENGLISH, prompt=japanese)
    assert LanguagePenalty()(said, {}).value == -1.0


def test_the_reference_decides_for_a_mixed_prompt() -> None:
    said = Completion(text=ENGLISH, prompt="What is 光合作用?")
    assert LanguagePenalty()(said, {"language": "zh"}).value == -1.0
    assert LanguagePenalty()(said, {"language": "en"}).value == 0.0
