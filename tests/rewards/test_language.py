"""The penalty on leaving the prompt's language."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from posttrain.rewards import BadReferenceError, Completion, LanguagePenalty
from posttrain.rewards.language_id import language_of, script_of
from posttrain.rewards.prose import MAX_CHARS, prose_of, sentences, without_names
from posttrain.rewards.words import words

ASKED = {
    "en": "How many cats are in the picture?",
    "zh": "图中有几只猫？",
    "de": "Wie viele Katzen sind im Bild?",
    "ja": "画像には猫が何匹いますか？",
    "fr": "Combien de chats y a-t-il sur cette image ?",
    "ru": "Сколько кошек на этой картинке?",
    "ar": "كم عدد القطط في هذه الصورة؟",
    "ko": "이 그림에는 고양이가 몇 마리 있습니까?",
    "hi": "इस तस्वीर में कितनी बिल्लियाँ हैं?",
}
SAID = {
    "en": "I look at the picture first. There are two cats on the sofa and one under the table. So there are three.",
    "zh": "我先看一下这张图片。沙发上有两只猫，桌子下面还有一只。所以答案是三只。",
    "de": "Ich schaue mir zuerst das Bild an. Zwei Katzen liegen auf dem Sofa und eine unter dem Tisch, also drei.",
    "ja": "まず画像を見ます。ソファの上に猫が二匹、テーブルの下に一匹います。したがって答えは三匹です。",
    "fr": "Je regarde d'abord l'image. Deux chats sont sur le canapé et un autre sous la table, donc il y en a trois.",
    "ru": "Сначала я смотрю на картинку. Две кошки лежат на диване, и ещё одна под столом. Значит, их три.",
    "ar": "أنظر أولا إلى الصورة. هناك قطتان على الأريكة وقطة واحدة تحت الطاولة، إذن العدد هو ثلاثة.",
    "ko": "먼저 그림을 봅니다. 소파 위에 고양이 두 마리가 있고 탁자 아래에 한 마리가 있습니다. 그래서 세 마리입니다.",
    "hi": "पहले मैं तस्वीर देखता हूँ। सोफे पर दो बिल्लियाँ हैं और मेज के नीचे एक और है। इसलिए कुल तीन बिल्लियाँ हैं।",
}


def penalty(prompt: str, text: str, **reference: object) -> float:
    value = LanguagePenalty()(Completion(text=text, prompt=prompt), reference).value
    assert value is not None
    return value


@pytest.mark.parametrize("asked", ASKED)
def test_the_prompts_language_costs_nothing_and_every_other_one_everything(asked: str) -> None:
    assert {said: penalty(ASKED[asked], text) for said, text in SAID.items()} == {
        said: 0.0 if said == asked else -1.0 for said in SAID
    }


@pytest.mark.parametrize(
    ("asked", "more"),
    [
        ("en", " 然后我们再检查一遍。"),
        ("en", " Then we 检查 it."),
        ("en", " Danach prüfen wir das Ergebnis noch einmal ganz in Ruhe."),
        ("zh", "So we check it once more and then we are done."),
        ("zh", "Потом проверим."),
        ("de", " Then we check the whole thing once more and we are done."),
    ],
)
def test_a_mix_costs_at_least_half_and_less_than_everything(asked: str, more: str) -> None:
    assert -1 < penalty(ASKED[asked], SAID[asked] + more) <= -0.5


@pytest.mark.parametrize(
    ("asked", "more"),
    [
        ("en", " The sign says “营业时间：九点到五点”, in red."),
        ("en", ' The sign says "营业时间", in red.'),
        ("en", " The sign says 「営業時間」."),
        ("en", " This is Beijing (北京)."),
        ("en", '\n```json\n[{"label": "猫猫猫猫猫猫猫猫"}]\n```'),
        ("en", "\n```python\nprint('你好，世界，你好，世界')\n```"),
        ("en", " Let `变量名字` be 3."),
        ("en", r" Then \(\alpha + \beta = 90\) and $\text{面积面积面积} = 3$."),
        ("en", " The angle α is larger than β."),
        ("en", " It shows Bayern München and Thomas Müller, von Beckenbauer."),
        ("en", ' <tool_call>{"name": "zoom", "arguments": {"label": "左边的猫左边的猫"}}</tool_call>'),
        ("zh", "我们使用 Transformer 模型和 PyTorch 的 DataLoader，在 GPU 上 fine-tuning。"),
        ("zh", "球员是 Thomas Müller，效力于 FC Bayern München。"),
        ("zh", "因此 $x + y = z$，`for i in range(10): total += i` 就是答案。"),
        ("ja", "これは日本国憲法第九条です。"),
    ],
)
def test_quotes_code_maths_names_and_terms_are_no_mixing(asked: str, more: str) -> None:
    assert penalty(ASKED[asked], SAID[asked] + more) == 0.0


@pytest.mark.parametrize(
    ("prompt", "text", "reference"),
    [
        (ASKED["en"], "三只猫。", {}),  # a label
        (ASKED["en"], "", {}),
        ("2 + 3 * 4 = ?", SAID["zh"], {}),
        ("<image>", SAID["zh"], {}),
        ("", SAID["zh"], {}),
        ("Translate into Chinese: there are three cats", SAID["zh"], {}),
        ("How many cats? Antworte auf Deutsch.", SAID["de"], {}),
        ("请用英文回答：图中有几只猫？", SAID["en"], {}),
        (ASKED["en"], SAID["en"] + " It says 营业时间九点到五点.", {"answer": "营业时间九点到五点"}),
        (ASKED["en"] + " Look for 猫.", SAID["en"] + " That is the 猫.", {}),
        (ASKED["en"], SAID["zh"], {"language": "zh"}),
        ("How many cats? Answer in German.", SAID["de"], {"language": "de"}),
    ],
)
def test_no_evidence_is_no_fault(prompt: str, text: str, reference: dict) -> None:
    assert penalty(prompt, text, **reference) == 0.0


def test_the_reference_can_name_the_language() -> None:
    assert penalty(ASKED["en"], SAID["en"], language="zh") == -1.0
    assert penalty("Answer in German, please.", SAID["en"], language="de") == -1.0
    with pytest.raises(BadReferenceError, match="'klingon'"):
        LanguagePenalty().perfect_answer({"language": "klingon"})
    assert LanguagePenalty().perfect_answer({}) is None


def test_thoughts_count_unless_they_shall_not() -> None:
    completion = Completion(text=f"<think>{SAID['zh']}</think>{SAID['en']}", prompt=ASKED["en"])
    assert LanguagePenalty()(completion, {}).value != 0.0
    assert LanguagePenalty(thoughts=False)(completion, {}).value == 0.0


def test_real_english_is_english(shared_data: Path) -> None:
    rows = [
        json.loads(row) for row in (shared_data / "gsm8k" / "train_500.jsonl").read_text("utf-8").splitlines()[:200]
    ]
    assert len(rows) == 200
    assert {penalty(row["question"], row["answer"]) for row in rows} == {0.0}
    lines = (shared_data / "ifeval" / "input_data.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    told = [language_of(without_names(prose_of(prompt))) for prompt in prompts]
    assert len(told) == 541 and told.count("en") >= 535 and set(told) <= {"en", None}


@pytest.mark.parametrize(
    "text", ["", "cat", "the red cup", "Bayern München", "12 345 67 89", "?! ... ###", "\ud800\ud800"]
)
def test_what_is_too_short_or_no_language_has_none(text: str) -> None:
    assert language_of(text) is None


def test_scripts() -> None:
    named = {
        "cup": "latin",
        "Тест": "cyrillic",
        "猫": "han",
        "カ": "kana",
        "한국": "hangul",
        "१२हि": "indic",
        "42": None,
    }
    assert {word: script_of(word) for word in named} == named


def test_sentences_and_names() -> None:
    assert sentences("One two. Three! 四五。六\nseven 3.5 eight") == [
        "One two",
        "Three",
        "四五",
        "六",
        "seven 3.5 eight",
    ]
    assert words(without_names("It was Thomas Müller, a friend. He smiled.")) == [
        "It",
        "was",
        "a",
        "friend",
        "He",
        "smiled",
    ]


@pytest.mark.parametrize("options", [{"min_words": 0}, {"allowed_frac": 1.0}, {"allowed_frac": -0.1}])
def test_options_are_checked(options: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        LanguagePenalty(**options)


@settings(max_examples=60, deadline=None)  # the first example loads the model
@given(st.text(max_size=300), st.text(max_size=60))
def test_any_text_gets_a_penalty_in_bounds(text: str, prompt: str) -> None:
    value = penalty(prompt, text)
    assert value == 0 or -1 <= value <= -0.5


@given(st.text(alphabet="$\\()[]`\"'“”«»「」《》<>/ab中 \n", max_size=200))
def test_prose_is_never_longer_than_the_text(text: str) -> None:
    assert len(prose_of(text)) <= len(text)


@pytest.mark.parametrize(
    "piece",
    ["$", "$$a", "\\(", "\\[", "“", "(", "'a", '"', "```", "<a", "《", "`\n", "中", "a b ", "\ud800", "http://"],
)
def test_time_is_bounded_for_hostile_text(piece: str) -> None:
    started = time.process_time()
    penalty(ASKED["en"], piece * (10 * MAX_CHARS // len(piece)))
    assert time.process_time() - started < 20  # about 0.2 s; a quadratic scan takes minutes
