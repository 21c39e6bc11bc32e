"""Instruction following: every kind with responses that pass and fail, and the rows of IFEval."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from posttrain.rewards import BadReferenceError, Completion, InstructionReward
from posttrain.rewards.instruction_kinds import KINDS, parse_instructions
from posttrain.rewards.instructions import loose_versions
from posttrain.rewards.sentences import paragraphs, sentences

ENGLISH = "the weather was fine and we walked along the river until the evening came"
GERMAN = "Das Wetter war schön und wir gingen am Fluss entlang, bis der Abend kam."
HINDI = "मौसम अच्छा था और हम शाम होने तक नदी के किनारे चलते रहे।"
MARATHI = "हवामान चांगले होते आणि आम्ही संध्याकाळ होईपर्यंत नदीकाठी चालत राहिलो."

CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["THIS is BIG", "NASA and the U.S. agree", "I am A. Well-KNOWN? WORLD-WIDE"],
        ["THIS is Big", "small", "World-Wide AND more"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        ["no capitals", "just ONE"],
        ["two WORDS HERE"],
    ),
    ("change_case:english_capital", {}, [ENGLISH.upper(), "YES, 3 OF THEM!"], [ENGLISH, "Yes", "123", GERMAN.upper()]),
    ("change_case:english_lowercase", {}, [ENGLISH, "yes, 3 of them!"], [ENGLISH.title(), "123", GERMAN.lower()]),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a haiku."},
        ["Write a haiku.\nAn old pond.", "write a HAIKU. ok"],
        ["An old pond.", "Write a poem. ok", "Write a haiku.", "I will: Write a haiku. ok"],
    ),
    (
        "combination:two_responses",
        {},
        ["one ****** two", "******\none\n******\ntwo\n******"],
        ["one", "same ****** same", "a ****** b ****** c", "a ****** ****** b", "****** a"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["Dear [name], see [place].", "[a][b][c]"],
        ["Dear [name]", "[] [ ]", "[[a]", "[a\nb] [c]"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. I lied.", "bye p. s. really", "P.S.: one more"],
        ["Bye.", "Bye. PS", "P.S.", "maps. So"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["Bye. P.P.S I lied.", "P.P.S. more"],
        ["P.S. I lied.", "P.P.S"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "NB"}, ["x NB: this"], ["x nothing", "NB"]),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "Well. My answer is maybe. So it is."],
        ["My answer is yes", "Yes.", "My answer is yes. My answer is no. My answer is maybe."],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": [1, 2]}', '```json\n{"a": 1}\n```', "```JSON\n[]\n```", "```\n[]```"],
        ["{a: 1}", 'Here: {"a": 1}', "```json\n{\n```", "[" * 10_000 + "]" * 10_000, "[" * 100_000],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb", "**SECTION 1**\n## SECTION2", "intro\nSECTION 1\nSECTION 2\nSECTION 3"],
        ["SECTION 1\na", "Section 1\nSection 2", "SECTION 1\nSECTION 1", "as in SECTION 1 and SECTION 2"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "- a\n  - b\n---\n**bold**", "Hello\n*a\n-b"],
        ["* a", "* a\n* b\n* c", "1. a\n2. b", "**a**\n**b**", "---\n---", "*\n*"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b c*", "**a** and ***b***", "* item *one*\n* item **two**"],
        ["*a*", "* a * and * b *", "** ** **", "*a\nb* *c\nd*", "2*3*4 * 5"],
    ),
    (
        "detectable_format:title",
        {},
        ["<<My title>>\ntext", "a <<b>> c"],
        ["<<>>", "<< >>", "<<a\nb>>", "<a>", "a>> <<b"],
    ),
    (
        "keywords:existence",
        {"keywords": ["river", "Evening"]},
        [ENGLISH, "RIVERS and evenings"],
        ["river", "rive evening", "r i v e r evening"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["can", "苹果", "c++"]},
        ["a candle", "toucan", "red", "c+"],
        ["I can.", "CAN", "我吃苹果了", "I use C++ now"],
    ),
    (
        "keywords:frequency",
        {"keyword": "fish", "frequency": 2, "relation": "at least"},
        ["Fish fish", "fishfish", "one fish two fish"],
        ["fish", "f i s h"],
    ),
    ("keywords:frequency", {"keyword": "fish", "frequency": 2, "relation": "less than"}, ["fish", "x"], ["fish fish"]),
    (
        "keywords:letter_frequency",
        {"letter": "Q", "let_frequency": 2, "let_relation": "at least"},
        ["quite Queer"],
        ["quite", "kite"],
    ),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 1, "let_relation": "less than"}, ["calm"], ["oh!"]),
    ("language:response_language", {"language": "de"}, [GERMAN, GERMAN.upper()], [ENGLISH, HINDI, "123", "Ja"]),
    ("language:response_language", {"language": "hi"}, [HINDI], [ENGLISH, GERMAN]),
    ("language:response_language", {"language": "mr"}, [MARATHI], [ENGLISH]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weekend"},
        ["a\n\nWeekend, at last", "\n\na\n \n\n**Weekend** b\n\n", 'a\n\n"Weekend" b'],
        ["a\n\nb", "a\nWeekend", "a\n\nWeekend\n\nc", "Weekend\n\nb", "a\n\nWeekends"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "***\na\n***\nb\n***\n", "a *** b"],
        ["a", "a\n\nb", "a\n***\nb\n***\nc", "a\n***\n***\nb", "***a*** and ***b***"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "at least"},
        ["One. Two! Three?", "一。二！三？", "one. two. three."],
        ["One. Two.", "Mr. A. B. Smith et al. left, e.g. in Jan. 2020.", "a, b, c; d"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "less than"},
        ["One. Two.", "1. one\n2. two\n3. three"],
        ["One. Two. Three."],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 4, "relation": "at least"},
        ["one two three four", "天气很好", "well-known to all"],
        ["one two three", "— – — –", "天气好"],
    ),
    ("length_constraints:number_words", {"num_words": 4, "relation": "less than"}, ["one two three"], ["a b c d"]),
    ("punctuation:no_comma", {}, ["no comma; none."], ["a, b", "1,000", "你好，我", "نعم، لا"]),
    (
        "startend:end_checker",
        {"end_phrase": "Any other questions?"},
        ["Fine. Any other questions?", '"Fine. any other QUESTIONS?"\n'],
        ["Any other questions? Yes.", "Any questions?"],
    ),
    ("startend:quotation", {}, ['"quoted"', ' "a\nb" ', "“quoted”"], ['"', '""', "'quoted'", 'a "quoted"', "quoted"]),
]
EACH = [
    (kind, demands, response, value)
    for kind, demands, passing, failing in CASES
    for value, responses in ((True, passing), (False, failing))
    for response in responses
]


@pytest.mark.parametrize(("kind", "demands", "response", "value"), EACH)
def test_a_response_passes_or_fails(kind: str, demands: dict[str, Any], response: str, value: bool) -> None:
    (instruction,) = parse_instructions([kind], [demands])
    assert instruction.is_followed(response) is value


def test_every_kind_has_responses_that_pass_and_that_fail() -> None:
    assert len(KINDS) == 25 and {kind for kind, *_ in CASES} == set(KINDS)
    assert all(passing and failing for _, _, passing, failing in CASES)
    assert len({kind.partition(":")[2] for kind in KINDS}) == 25


@pytest.mark.parametrize(("kind", "demands"), [(kind, demands) for kind, demands, *_ in CASES])
@pytest.mark.parametrize("response", ["", " \n"])
def test_an_empty_response_follows_nothing(kind: str, demands: dict[str, Any], response: str) -> None:
    (instruction,) = parse_instructions([kind], [demands])
    assert not instruction.is_followed(response)


ANYTHING = st.text(alphabet="aA.!*[]<>\"-# \n，。1,{}_'", max_size=300) | st.text(max_size=100)


@given(st.sampled_from(CASES), ANYTHING)
def test_no_check_ever_raises(case: tuple[str, dict[str, Any], list[str], list[str]], response: str) -> None:
    (instruction,) = parse_instructions([case[0]], [case[1]])
    assert instruction.is_followed(response) in (True, False)


PIECES = [
    "[",
    "]",
    "*",
    "* ",
    "<<",
    "a. ",
    ".",
    "\n",
    "\n ",
    '"',
    "p.",
    "P.S",
    "SECTION",
    "```json",
    "a",
    "[a",
    "{",
    "-",
]


@pytest.mark.parametrize("piece", PIECES)
def test_every_check_takes_little_time_for_hostile_text(piece: str) -> None:
    text = piece * (100_000 // len(piece)) + "x"
    started = time.process_time()
    for kind, demands, *_ in CASES:
        (instruction,) = parse_instructions([kind], [demands])
        instruction.is_followed(text)
    assert time.process_time() - started < 20  # about a second; what is quadratic takes minutes


def reference(*kinds: str) -> dict[str, Any]:
    demands = {kind: demands for kind, demands, *_ in CASES}
    return {"instruction_id_list": list(kinds), "kwargs": [demands[kind] for kind in kinds]}


def test_the_reward_is_the_share_of_instructions_followed_or_all_of_them() -> None:
    asked = reference("punctuation:no_comma", "detectable_format:title", "startend:quotation")
    score = InstructionReward()(Completion(text="<<A>> b"), asked)
    assert score.value == pytest.approx(2 / 3)
    assert score.parts == {"no_comma": 1.0, "title": 1.0, "quotation": 0.0}
    assert score.reason == "not followed: quotation"
    assert InstructionReward(credit="all")(Completion(text="<<A>> b"), asked).value == 0.0
    assert InstructionReward(credit="all")(Completion(text='"<<A>> b"'), asked).value == 1.0
    assert InstructionReward()(Completion(text=""), asked).value == 0.0


def test_thoughts_are_not_looked_at() -> None:
    asked = reference("punctuation:no_comma")
    assert InstructionReward()(Completion(text="<think>well, no</think>fine"), asked).value == 1.0
    assert InstructionReward()(Completion(text="<think>fine</think>well, no"), asked).value == 0.0
    assert InstructionReward()(Completion(text="<think>never closed"), asked).value == 0.0


def test_loose_mode_overlooks_an_opening_a_closing_and_asterisks() -> None:
    asked = reference("startend:quotation")
    wrapped = Completion(text='Sure, here it is:\n**"quoted"**\nAnything else?')
    assert InstructionReward(mode="strict")(wrapped, asked).value == 0.0
    assert InstructionReward(mode="loose")(wrapped, asked).value == 1.0
    assert loose_versions("a\n*b*\nc") == ["a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", "a\nb\nc", "b\nc", "a\nb", "b"]
    assert not InstructionReward(mode="loose")(Completion(text="a"), reference("startend:end_checker")).value


def test_every_row_of_ifeval_can_be_read(shared_data: Path) -> None:
    rows = [json.loads(line) for line in (shared_data / "ifeval" / "input_data.jsonl").read_text().splitlines()]
    assert len(rows) == 541
    seen = Counter(kind for row in rows for kind in row["instruction_id_list"])
    assert set(seen) == set(KINDS)
    reward = InstructionReward()
    for row in rows:
        assert reward.perfect_answer(row) is None
        score = reward(Completion(text=f"{row['prompt']} No."), row)
        assert score.value is not None and len(score.parts) == len(set(row["instruction_id_list"]))


def test_the_columns_of_a_table_hold_none_for_what_a_kind_does_not_take() -> None:
    (instruction,) = parse_instructions(["detectable_format:title"], [{"num_words": None, "relation": None}])
    assert instruction.demands == {}
    (instruction,) = parse_instructions(
        ["length_constraints:number_words"], [{"num_words": 30.0, "relation": "at least", "letter": None}]
    )
    assert instruction.demands == {"num_words": 30, "relation": "at least"}


@pytest.mark.parametrize(
    ("kinds", "demands", "message"),
    [
        (["punctuation:no_comas"], [{}], "did you mean 'punctuation:no_comma'"),
        ([["x"]], [{}], "there is no instruction"),
        (["punctuation:no_comma"], [], "of one length"),
        ("punctuation:no_comma", [{}], "two lists"),
        ([], [], "empty"),
        (["punctuation:no_comma"], [[]], "must be a mapping"),
        (["punctuation:no_comma"], [{"x": 1}], "takes no arguments; got x"),
        (["length_constraints:number_words"], [{"num_words": 3}], "takes num_words, relation; got num_words"),
        (["length_constraints:number_words"], [{"num_words": "3", "relation": "at least"}], "must be a count, got '3'"),
        (["length_constraints:number_words"], [{"num_words": True, "relation": "at least"}], "must be a count"),
        (["length_constraints:number_words"], [{"num_words": float("nan"), "relation": "at least"}], "must be a count"),
        (["length_constraints:number_words"], [{"num_words": -1, "relation": "at least"}], "must be a count"),
        (["length_constraints:number_words"], [{"num_words": 3, "relation": "about"}], "'at least' or 'less than'"),
        (["keywords:existence"], [{"keywords": "cat"}], "must be a list of texts"),
        (["keywords:existence"], [{"keywords": [" "]}], "must be a list of texts"),
        (["startend:end_checker"], [{"end_phrase": ""}], "must be a text"),
    ],
)
def test_instructions_that_cannot_be_read_are_an_error_of_the_data(kinds: Any, demands: Any, message: str) -> None:
    row = {"instruction_id_list": kinds, "kwargs": demands}
    with pytest.raises(BadReferenceError, match=message):
        InstructionReward().perfect_answer(row)
    with pytest.raises(BadReferenceError, match=message):
        InstructionReward()(Completion(text="x"), row)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Dr. Smith went to the U.S. in Jan. 2020. He left.", 2),
        ('He said: "Stop!" Then he left... I think. What?! Yes', 5),
        ("1. First item.\n2. Second item.\n3. Third", 3),
        ("It costs 3.5 dollars. Eggs, milk etc. are cheap. Eggs etc. We left at 5 p.m. on foot.", 4),
        ("Wait... what? ok", 2),
        ("A heading\n\nOne sentence.", 1),
        ("你好。我很好！你呢？好", 4),
        ("...", 0),
        ("", 0),
    ],
)
def test_sentences_are_counted(text: str, count: int) -> None:
    assert len(sentences(text)) == count


def test_paragraphs_stand_between_empty_lines() -> None:
    assert paragraphs("\n a\nb \n \t\n\nc\n") == ["a\nb", "c"]
