"""Every layout of rows becomes the same conversation, and a row that cannot says why and which it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.formats import ParsedRow, parse_row
from posttrain.data.marks import IMAGE_MARK, RESERVED, split_marks
from posttrain.data.source_spec import SourceSpec
from posttrain.errors import DataError

IMAGE = {"type": "image"}


def parse(row: dict, **spec) -> ParsedRow:
    return parse_row(row, SourceSpec(path="x", **spec), "x.jsonl:7")


def text(words: str) -> dict:
    return {"type": "text", "text": words}


@given(st.lists(st.sampled_from([IMAGE_MARK, "a", " ", "\n", "<", "image>", "<image", "é"]), max_size=12).map("".join))
def test_splitting_at_marks_loses_nothing(words):
    parts = split_marks(words, "row")
    assert "".join(IMAGE_MARK if part["type"] == "image" else part["text"] for part in parts) == words
    assert sum(part["type"] == "image" for part in parts) == words.count(IMAGE_MARK)
    assert all(part.get("text") != "" for part in parts)


def test_all_layouts_of_one_conversation_read_alike():
    parts = [IMAGE, text("Who?")]
    wanted = ({"role": "user", "content": parts}, {"role": "assistant", "content": "Me."})
    asked, said = {"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "Me."}
    from_human, from_gpt = {"from": "human", "value": "<image>Who?"}, {"from": "gpt", "value": "Me."}
    inline = {"role": "user", "content": [{"type": "image", "image": "1.png", "text": None}, text("Who?")]}
    linked = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "1.png"}}, text("Who?")]}
    in_parts = [{"role": "user", "content": parts}, {"role": "assistant", "content": [text("Me.")]}]
    rows = [
        {"messages": [asked, said], "images": ["1.png"]},
        {"messages": in_parts, "images": ["1.png"]},
        {"messages": [inline, said]},
        {"messages": [linked, said]},
        {"messages": [from_human, from_gpt], "images": ["1.png"]},
        {"conversations": [from_human, from_gpt], "image": "1.png"},
        {"prompt": [asked], "completion": [said], "image": ["1.png"]},
        {"prompt": "<image>Who?", "completion": "Me.", "images": ["1.png"]},
    ]
    for row in rows:
        parsed = parse(row)
        assert parsed.messages == wanted and parsed.image_refs == ("1.png",) and not parsed.reference


def test_images_are_dealt_to_marks_in_the_order_of_reading():
    row = {
        "messages": [
            {"role": "user", "content": "<image>a<image>"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": [text("c"), {"type": "image", "image": "inline.png"}, IMAGE]},
        ],
        "images": ["1.png", "2.png", "3.png"],
    }
    parsed = parse(row)
    assert parsed.image_refs == ("1.png", "2.png", "inline.png", "3.png")
    assert parsed.messages[0]["content"] == [IMAGE, text("a"), IMAGE]
    assert parsed.messages[2]["content"] == [text("c"), IMAGE, IMAGE]


def test_columns_that_nothing_consumed_are_reference_fields():
    parsed = parse({"prompt": "p", "answer": "4", "bbox": [1, 2], "task": "count", "id": 3})
    assert parsed.task == "count" and parsed.reference == {"answer": "4", "bbox": [1, 2], "id": 3}
    assert parse({"prompt": "p"}, task="maths").task == "maths"
    both = parse({**chat(("user", "a")), "prompt": "p", "completion": "c"})
    assert both.messages[0]["content"] == "a" and both.reference == {"prompt": "p", "completion": "c"}


def test_columns_and_answer_regex_read_gsm8k_rows():
    row = {"question": "1+1?", "answer": "add them\n#### 2"}
    parsed = parse(row, columns={"prompt": "question", "answer": "answer"}, answer_regex="#### (.+)$")
    assert parsed.messages == ({"role": "user", "content": "1+1?"},) and parsed.reference == {"answer": "2"}
    both = parse(
        row, columns={"prompt": "question", "completion": "answer", "answer": "answer"}, answer_regex="#### (.+)$"
    )
    assert both.messages[1]["content"] == row["answer"] and both.reference == {"answer": "2"}


def test_a_template_writes_the_prompt_and_its_columns_stay_for_rewards():
    row = {"q": "1+1?", "unit": "apples", "image": "1.png"}
    parsed = parse(row, prompt_template="<image>{q} in {unit}, as \\boxed{{}}")
    assert parsed.messages[0]["content"] == [IMAGE, text("1+1? in apples, as \\boxed{}")]
    assert parsed.reference == {"q": "1+1?", "unit": "apples"}


def test_system_prompts_are_added_where_there_is_none():
    row = {"prompt": "p"}
    assert parse(row, system="S").messages[0] == {"role": "system", "content": "S"}
    assert parse({**row, "system": "row's"}, system="S").messages[0]["content"] == "row's"
    own = {"messages": [{"role": "system", "content": "own"}, {"role": "user", "content": "p"}]}
    assert [m["content"] for m in parse(own, system="S").messages] == ["own", "p"]


def test_sharegpt_tools_become_tool_calls_and_tool_turns():
    turns = [
        {"from": "human", "value": "Sum?"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "3."},
    ]
    parsed = parse({"conversations": turns, "tools": '[{"name": "add"}]'})
    assert [m["role"] for m in parsed.messages] == ["user", "assistant", "tool", "assistant"]
    assert parsed.messages[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1}}
    assert parsed.reference == {"tools": [{"name": "add"}]}


def chat(*turns: tuple[str, str]) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


BAD = [
    ({**chat(("user", "<image>a")), "images": ["1", "2"]}, {}, "marks is 1 but number of images is 2"),
    ({"prompt": "<image><image>", "image": "1"}, {}, "number of <image> marks is 2 but number of images is 1"),
    ({"prompt": "none", "image": "1"}, {}, "number of <image> marks is 0 but number of images is 1"),
    (chat(("user", "<video>a")), {}, "videos are not supported yet"),
    ({**chat(("user", "a")), "videos": ["1.mp4"]}, {}, "has videos, which are not supported yet"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, {}, "has a video"),
    ({**chat(("user", "a"), ("assistant", "see <image>")), "images": ["1"]}, {}, "the assistant holds an image"),
    (chat(("user", "a"), ("assistant", "")), {}, "turn of the assistant is empty"),
    (chat(("assistant", "a")), {}, "no user turn"),
    (chat(("assistant", "a"), ("user", "b")), {}, "must begin with a user turn"),
    (chat(("user", "a"), ("system", "b")), {}, "system turn stands after the first"),
    (chat(("narrator", "a")), {}, "role 'narrator'; roles are: system, user"),
    ({"messages": []}, {}, "'messages' must be a text or a list of turns"),
    ({"messages": [{"role": "user", "content": 3}]}, {}, "content of a turn must be a text or a list of parts, got 3"),
    ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, {}, "must be a text or an image"),
    ({"question": "a", "n": 1}, {}, r"no 'messages' or 'conversations' or 'prompt' column \(it has: question, n\)"),
    ({"prompt": "a"}, {"format": "qwen"}, "no 'conversations' column"),
    ({"prompt": "a"}, {"columns": {"answer": "gold"}}, "no column 'gold'; its columns are: prompt"),
    ({"q": "a"}, {"prompt_template": "{question}"}, "no column 'question', which prompt_template asks for"),
    ({"prompt": "a", "answer": "x"}, {"answer_regex": "#### (.+)"}, "answer 'x' does not match answer_regex '#### "),
    ({"prompt": "a"}, {"answer_regex": "#### (.+)"}, "answer_regex needs an `answer` text, got None"),
    ({"prompt": "a", "tools": "{"}, {}, "tools is not valid JSON"),
    ({"prompt": "a", "completion": "b"}, {"thinking": True}, "has no <think>"),
    ({"prompt": "a", "completion": "<think>x</think>b"}, {"thinking": False}, "holds <think>"),
    ({"prompt": "a", "system": 3}, {}, "system prompt must be a text, got 3"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "spec", "message"), BAD, ids=[message[:40] for *_, message in BAD])
def test_a_row_that_cannot_be_used_is_named_with_the_reason(row, spec, message):
    with pytest.raises(DataError, match=rf"^x\.jsonl:7: .*{message}") as caught:
        parse(row, **spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("token", RESERVED)
def test_special_tokens_are_refused_wherever_text_can_hold_them(token):
    call = {"function": {"name": "f", "arguments": {"a": token}}}
    rows = [
        chat(("user", f"a{token}b")),
        chat(("user", "a"), ("assistant", f"b{token}")),
        {"prompt": [{"role": "user", "content": [text(token)]}]},
        {"prompt": "a", "system": token},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]},
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b", "reasoning_content": token},
            ]
        },
    ]
    for row in rows:
        with pytest.raises(DataError, match=r"^x\.jsonl:7: the text holds the special token <\|"):
            parse(row)


@pytest.mark.parametrize("template", ["{q.__class__}", "{q[0]}", "{}", "{0}", "{q!r}", "{q:{w}}", "{q:>9}"])
def test_templates_may_not_walk_through_objects(template):
    with pytest.raises(DataError, match="plain column names"):
        SourceSpec(path="x", prompt_template=template)


def test_specs_that_cannot_work_are_refused_when_they_are_made():
    with pytest.raises(DataError, match="write literal braces doubled"):
        SourceSpec(path="x", prompt_template="{q")
    with pytest.raises(DataError, match="has no group"):
        SourceSpec(path="x", answer_regex="#### .+")
    with pytest.raises(DataError, match="is not a regular expression"):
        SourceSpec(path="x", answer_regex="(")
    with pytest.raises(DataError, match="limit must be at least 1, got 0"):
        SourceSpec(path="x", limit=0)
