"""Generated prompts are seeded, their references can be read, and what they demand can be done."""

import json
import re
from collections.abc import Mapping
from typing import Any, get_args

import pytest
from posttrain.rewards import Completion, make_reward, make_table

from posttrain.config import DataSection
from posttrain.data import PromptKind, PromptSource, PromptSpec
from posttrain.errors import DataError
from tests.waiting import PATIENCE_S

KINDS: tuple[PromptKind, ...] = get_args(PromptKind)
each_kind = pytest.mark.parametrize("kind", KINDS)

PROSE = {
    "en": "The lamp on the table was lit when they came home and nobody remembered who had done it. ",
    "zh": "他们回到家的时候，桌上的灯已经亮着，没有人记得是谁点的。",
    "de": "Die Lampe auf dem Tisch brannte schon, als sie nach Hause kamen, und niemand wusste warum. ",
    "fr": "La lampe sur la table était allumée quand ils sont rentrés et personne ne savait pourquoi. ",
    "es": "La lámpara de la mesa estaba encendida cuando volvieron a casa y nadie sabía por qué. ",
}


@each_kind
def test_an_index_always_gives_the_same_prompt_and_a_seed_gives_others(kind: PromptKind) -> None:
    one, two = PromptSource(PromptSpec(kind=kind, size=40)), PromptSource(PromptSpec(kind=kind, size=40))
    other = PromptSource(PromptSpec(kind=kind, size=40, seed=1))
    assert [one[i] for i in range(40)] == [two[i] for i in range(40)]
    assert [one[i].messages for i in range(40)] != [other[i].messages for i in range(40)]
    assert one[-1] == one[39] and one[3].task == kind and len({one[i].id for i in range(40)}) == 40
    with pytest.raises(IndexError, match="there are 40 prompts, asked for prompt 40"):
        one[40]


@each_kind
def test_prompts_are_many_and_text_alone(kind: PromptKind) -> None:
    source = PromptSource(PromptSpec(kind=kind, size=500))
    examples = [source[i] for i in range(500)]
    assert all(len(e.messages) == 1 and e.messages[0]["role"] == "user" and not e.images for e in examples)
    texts = [e.messages[0]["content"] for e in examples]
    assert len(set(texts)) > 200
    assert not any(re.search(r"\{[a-z]*\}", text) for text in texts), "a blank that was not filled in"


def test_the_rewards_that_they_are_for_can_read_every_reference() -> None:
    schema = {"name": "json_schema", "deadline_s": PATIENCE_S}
    table = make_table({kind: schema if kind == "json" else "instructions" for kind in KINDS})
    for kind in KINDS:
        source = PromptSource(PromptSpec(kind=kind, size=200))
        for example in (source[i] for i in range(200)):
            assert table.check(kind, example.reference) == []
    assert {PromptSource(PromptSpec(kind="language"))[i].reference["language"] for i in range(200)} == set(PROSE)


@pytest.mark.parametrize("kind", ["repetition", "language", "format"])
def test_what_is_demanded_can_be_done_all_at_once(kind: PromptKind) -> None:
    reward = make_reward("instructions")
    source = PromptSource(PromptSpec(kind=kind, size=300))
    for example in (source[i] for i in range(300)):
        score = reward(Completion(text=obedient(example.reference)), example.reference)
        assert score.value == 1.0, (example.messages, score.reason)


def test_silence_never_pays() -> None:
    for kind in ("repetition", "language", "format"):
        source = PromptSource(PromptSpec(kind=kind, size=50))
        for said in ("", "Sorry."):
            scores = [make_reward("instructions")(Completion(text=said), source[i].reference) for i in range(50)]
            values = [score.value for score in scores if score.value is not None]
            assert len(values) == 50 and sum(values) / 50 < 0.25


@pytest.mark.parametrize("kind", ["repetition", "language"])
def test_the_penalty_that_a_prompt_elicits_sees_what_it_elicits(kind: PromptKind) -> None:
    penalty = make_reward({"name": kind, "unit": "text"} if kind == "repetition" else kind)
    source = PromptSource(PromptSpec(kind=kind, size=100))
    for example in (source[i] for i in range(100)):
        prompt = example.messages[0]["content"]
        other = PROSE["zh" if example.reference.get("language") != "zh" else "en"]
        bad = "The same line comes again and again without an end. " * 40 if kind == "repetition" else other * 3
        wrong = penalty(Completion(text=bad, prompt=prompt), example.reference)
        right = penalty(
            Completion(text=PROSE[example.reference.get("language", "en")], prompt=prompt), example.reference
        )
        assert wrong.value is not None and wrong.value <= -0.5 and right.value == 0.0, prompt


def test_json_answers_follow_their_schema_and_others_do_not() -> None:
    reward = make_reward("json_schema", deadline_s=PATIENCE_S)
    source = PromptSource(PromptSpec(kind="json", size=30))
    for reference in (source[i].reference for i in range(30)):
        answer = reference["answer"]
        (key,) = answer
        short = {key: answer[key][1:]}
        assert reward(Completion(text=json.dumps(answer)), reference).value == 1.0
        assert reward(Completion(text=json.dumps(short)), reference).value == 0.0


def test_bad_specs_are_named_and_recipes_take_exactly_one_source() -> None:
    with pytest.raises(
        DataError, match="no prompts of the kind 'rhyme'; kinds are: repetition, language, format, json"
    ):
        PromptSpec(kind="rhyme")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="a size of at least 1, got 0"):
        PromptSpec(kind="json", size=0)
    with pytest.raises(ValueError, match="exactly one of 'path'"):
        DataSection.model_validate({"prompts": {"kind": "json"}, "path": "a.jsonl"})


def obedient(reference: Mapping[str, Any]) -> str:
    """A response that follows all instructions of a reference, put together from them one by one."""
    demands = dict(zip(reference["instruction_id_list"], reference["kwargs"], strict=True))
    words = demands.get("length_constraints:number_words", {"num_words": 1, "relation": "at least"})
    language = demands.get("language:response_language", {"language": "en"})["language"]
    body = PROSE[language] * (1 + words["num_words"] // 10) if words["relation"] == "at least" else "Words"
    body += " ".join(demands.get("keywords:existence", {"keywords": []})["keywords"])
    if given := demands.get("detectable_format:number_highlighted_sections"):
        body += " *that*" * given["num_highlights"]
    if given := demands.get("detectable_content:number_placeholders"):
        body += " [name]" * given["num_placeholders"]
    if given := demands.get("detectable_format:number_bullet_lists"):
        body += "\n- item" * given["num_bullets"]
    if given := demands.get("detectable_format:multiple_sections"):
        body += "".join(f"\nSection {place + 1}\n" for place in range(given["num_sections"]))
    if given := demands.get("length_constraints:number_paragraphs"):
        body += "\n***\nwords" * (given["num_paragraphs"] - 1)
    if "detectable_format:title" in demands:
        body = f"<<title>>\n{body}"
    if given := demands.get("startend:end_checker"):
        body += f"\n{given['end_phrase']}"
    return f'"{body}"' if "startend:quotation" in demands else body
