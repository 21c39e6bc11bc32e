"""Generated prompts that elicit what general RL penalises: repetition, mixed languages, missed formats; text alone.

Each row holds the reference fields of `instructions` (or, of `json`, those of `json_schema`), and demands enough text
that a policy cannot escape a penalty by saying less.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from posttrain.data.strict_formats import Demanded, format_prompt, json_prompt, with_demands
from posttrain.errors import DataError
from posttrain.records import Example

PromptKind = Literal["repetition", "language", "format", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSpec:
    """A data set of generated prompts, whose task is their kind. Another seed gives other prompts: hold out by seed."""

    kind: PromptKind
    """repetition: long lists and texts without an end; language: two languages in the prompt, one in the answer;
    format: one to four of IFEval's instructions; json: an object by a schema."""
    size: int = 1000
    """Number of examples; some texts recur in large sets."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(PromptKind):
            raise DataError(
                f"there are no prompts of the kind '{self.kind}'; kinds are: {', '.join(get_args(PromptKind))}"
            )
        if self.size < 1:
            raise DataError(f"prompts need a size of at least 1, got {self.size}")


class PromptSource:
    """A data source of generated prompts: the same index always gives the same text and reference."""

    def __init__(self, spec: PromptSpec) -> None:
        self.spec = spec

    def __len__(self) -> int:
        return self.spec.size

    def __getitem__(self, index: int, /) -> Example:
        if not -self.spec.size <= index < self.spec.size:
            raise IndexError(f"there are {self.spec.size} prompts, asked for prompt {index}")
        index %= self.spec.size
        name = f"prompts-{self.spec.kind}-{self.spec.seed}:{index}"
        prompt, reference = _WRITERS[self.spec.kind](random.Random(name))
        messages = ({"role": "user", "content": prompt},)
        return Example(id=name, task=self.spec.kind, messages=messages, reference=reference)


_LISTS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "en": (
        (
            "animals",
            "things that can be found in a kitchen",
            "jobs",
            "tips for learning a language",
            "uses of a paper clip",
            "names for a small bakery",
            "questions for a first meeting",
            "reasons to go for a walk",
            "rivers and lakes",
            "words that describe the sea",
        ),
        "List {n} different {topic}. Begin each line with '- ', name nothing twice, and write nothing else.",
    ),
    "zh": (
        (
            "动物",
            "厨房里的用品",
            "职业",
            "学习外语的建议",
            "回形针的用途",
            "小面包店的店名",
            "散步的理由",
            "形容大海的词语",
        ),
        "请列出{n}个不同的{topic}。每行以“- ”开头，不要重复，也不要写其他内容。",
    ),
}
_LONG: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "en": (
        (
            "a lighthouse keeper who hears a knock",
            "a train that never stops",
            "two gardeners who do not speak",
            "a map with one street too many",
            "a clock that is always right",
            "the last day of a small shop",
        ),
        (
            "Write a story about {topic}, and keep going: it must have at least {n} words.",
            "Tell the story of {topic}. Do not stop early; go on for at least {n} words, and let something new happen "
            "in every paragraph.",
            "Continue this for as long as you can, with at least {n} words: it is the story of {topic}.",
        ),
    ),
    "zh": (
        ("守灯塔的老人", "一列从不停下的火车", "两个不说话的园丁", "一只永远准时的钟", "小店的最后一天"),
        (
            "请写一个关于{topic}的故事，一直写下去，至少{n}个字。",
            "请详细讲述{topic}的故事，每一段都要有新的情节，至少{n}个字。",
        ),
    ),
}


def _repetition(draw: random.Random) -> Demanded:
    language = draw.choice(("en", "zh"))
    if draw.random() < 0.5:
        topics, wording = _LISTS[language]
        n = draw.randint(15, 60)
        bullets = {"detectable_format:number_bullet_lists": {"num_bullets": n}}
        return with_demands(wording.format(n=n, topic=draw.choice(topics)), bullets)
    topics, wordings = _LONG[language]
    n = draw.randrange(300, 801, 50)
    prompt = draw.choice(wordings).format(n=n, topic=draw.choice(topics))
    return with_demands(prompt, {"length_constraints:number_words": {"num_words": n, "relation": "at least"}})


_PASSAGES: Mapping[str, tuple[str, ...]] = {
    "en": (
        "The bridge was closed for repairs, and the ferry ran only in the morning.",
        "A model that is trained on its own answers may forget what it once knew.",
        "Bread rises because yeast turns sugar into gas.",
        "The museum lends its oldest painting to a school once a year.",
    ),
    "zh": (
        "这座桥因为维修而关闭，渡船只在早上开行。",
        "面团会发起来，是因为酵母把糖变成了气体。",
        "博物馆每年把最古老的一幅画借给一所学校。",
        "下雨的时候，老人总是坐在窗边听收音机。",
    ),
    "de": (
        "Die Brücke war wegen Bauarbeiten gesperrt, und die Fähre fuhr nur am Morgen.",
        "Das Brot geht auf, weil die Hefe Zucker in Gas verwandelt.",
        "Das Museum leiht sein ältestes Bild einmal im Jahr einer Schule.",
    ),
    "fr": (
        "Le pont était fermé pour travaux, et le bac ne passait que le matin.",
        "Le pain lève parce que la levure transforme le sucre en gaz.",
        "Le musée prête chaque année son plus vieux tableau à une école.",
    ),
    "es": (
        "El puente estaba cerrado por obras y el transbordador salía solo por la mañana.",
        "El pan sube porque la levadura convierte el azúcar en gas.",
        "El museo presta cada año su cuadro más antiguo a una escuela.",
    ),
}
_ASKED: Mapping[str, tuple[str, ...]] = {
    "en": (
        'Explain in at least {n} words what this sentence says and why. Answer in English only: "{passage}"',
        'Write a story of at least {n} words that begins where this ends. Use no language but English: "{passage}"',
        'Answer in English, with at least {n} words. Which questions does this leave open? "{passage}"',
    ),
    "zh": (
        "请只用中文解释这句话的意思，并说明可能的原因，至少{n}个字：“{passage}”",
        "请用中文接着写一个小故事，至少{n}个字，不要夹杂其他语言：“{passage}”",
        "Please answer in Chinese only, with at least {n} characters. What may have happened before this? “{passage}”",
    ),
    "de": (
        "Erkläre nur auf Deutsch und mit mindestens {n} Wörtern, was dieser Satz sagt und woran es liegt: „{passage}“",
        "Answer in German only, with at least {n} words. What may have happened before this? “{passage}”",
    ),
    "fr": (
        "Explique uniquement en français, en au moins {n} mots, ce que dit cette phrase et pourquoi : « {passage} »",
        "Answer in French only, with at least {n} words. What may have happened before this? “{passage}”",
    ),
    "es": (
        "Explica solo en español, con al menos {n} palabras, qué dice esta frase y por qué: «{passage}»",
        "Answer in Spanish only, with at least {n} words. What may have happened before this? “{passage}”",
    ),
}


def _language(draw: random.Random) -> Demanded:
    wanted = draw.choice(list(_ASKED))
    shown = draw.choice([language for language in _PASSAGES if language != wanted])
    n = draw.randrange(40, 201, 10)
    demands = {
        "language:response_language": {"language": wanted},
        "length_constraints:number_words": {"num_words": n, "relation": "at least"},
    }
    prompt, reference = with_demands(
        draw.choice(_ASKED[wanted]).format(n=n, passage=draw.choice(_PASSAGES[shown])), demands
    )
    return prompt, {**reference, "language": wanted}


_WRITERS: Mapping[PromptKind, Callable[[random.Random], Demanded]] = {
    "repetition": _repetition,
    "language": _language,
    "format": format_prompt,
    "json": json_prompt,
}
