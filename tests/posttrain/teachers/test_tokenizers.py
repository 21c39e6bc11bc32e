"""A teacher's tokens are the student's, all of them, or the first that differs is named."""

import pytest
from posttrain.model.tiny import default_corpus, train_tokenizer
from transformers import AddedToken

from posttrain.errors import TeacherError
from posttrain.teachers.tokenizers import check_tokenizers, tokenizer_identity


def tokenizer(num_texts: int = 100, vocab: int = 400):
    return train_tokenizer(default_corpus(num_texts), vocab=vocab)


def test_equal_tokens_at_equal_ids_pass():
    one, other = tokenizer(), tokenizer()
    check_tokenizers(one, other, name="big")
    assert tokenizer_identity(one) == tokenizer_identity(other)


def test_the_first_token_that_differs_is_named_with_both_strings():
    one, other = tokenizer(), tokenizer(3)
    ours, theirs = ({i: t for t, i in x.get_vocab().items()} for x in (one, other))
    first = min(i for i in range(400) if ours.get(i) != theirs.get(i))
    with pytest.raises(TeacherError) as caught:
        check_tokenizers(one, other, name="big")
    said = str(caught.value)
    assert said.startswith(f"teacher 'big' has another tokenizer than the student: token {first} is {theirs[first]!r}")
    assert f"and {ours[first]!r} here" in said and "stage of algorithm 'answers'" in said
    assert tokenizer_identity(one) != tokenizer_identity(other)


@pytest.mark.parametrize("extra", ["student", "teacher"])
def test_an_added_token_that_only_one_has_is_named(extra):
    pair = {"student": tokenizer(), "teacher": tokenizer()}
    pair[extra].add_tokens([AddedToken("<box>")])
    place = len(pair[extra]) - 1
    there, here = ("missing", "'<box>'") if extra == "student" else ("'<box>'", "missing")
    with pytest.raises(TeacherError, match=f"token {place} is {there} there and {here} here"):
        check_tokenizers(pair["student"], pair["teacher"], name="big")


def test_added_tokens_in_another_order_differ():
    one, other = tokenizer(), tokenizer()
    one.add_tokens(["<a>", "<b>"])
    other.add_tokens(["<b>", "<a>"])
    with pytest.raises(TeacherError, match="is '<b>' there and '<a>' here"):
        check_tokenizers(one, other, name="big")
