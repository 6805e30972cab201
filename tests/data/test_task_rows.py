"""Rows with several labels and rows of words and tags, as tensors."""

import logging

import datasets
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from elm_nni.data.metrics import UNCOUNTED
from elm_nni.data.task_rows import TaskRows
from elm_nni.errors import UserError
from elm_nni.modeling.heads_elm import IGNORED_LABEL

TAGS = ("O", "B-PER", "I-PER")
SENTENCES = [["unbelievableness", "rejects", "EU"], ["a"], ["b", "\u200b", "unbelievableness", "c"]]


def _several(labels, texts=("one", "two words here", "three")):
    features = {"text": datasets.Value("string"), "label": datasets.List(datasets.ClassLabel(names=["x", "y", "z"]))}
    return datasets.Dataset.from_dict({"text": list(texts), "label": labels}, features=datasets.Features(features))


def _tagged(sentences, tags):
    words, ids = datasets.List(datasets.Value("string")), datasets.List(datasets.ClassLabel(names=list(TAGS)))
    return datasets.Dataset.from_dict(
        {"text": sentences, "label": tags}, features=datasets.Features({"text": words, "label": ids})
    )


def test_several_labels_are_ones_among_zeros(tokenizer):
    rows = TaskRows(_several([[0, 2], [], [1]]), tokenizer, max_length=16)
    assert rows.labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert rows.label_names == ("x", "y", "z")
    batch = rows.batch([1, 0])
    assert batch["labels"].tolist() == [[0, 0, 0], [1, 0, 1]]
    assert batch["labels"].dtype == torch.float32
    oracle = tokenizer(["two words here", "one"], padding=True, return_tensors="pt")
    assert (batch["input_ids"] == oracle["input_ids"]).all()
    assert (batch["attention_mask"] == oracle["attention_mask"]).all()
    plain = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [[0], [1]]})
    with pytest.raises(ValueError, match="lists of labels need a column of ClassLabel"):
        TaskRows(plain, tokenizer, max_length=16)


def test_the_first_token_of_a_word_has_its_tag(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        rows = TaskRows(_tagged(SENTENCES, [[1, 0, 2], [0], [1, 2, 2, 0]]), tokenizer, max_length=32)
    pieces = [tokenizer.tokenize(" ".join(sentence)) for sentence in SENTENCES]
    assert pieces[0] == ["unbelievable", "##ness", "rejects", "eu"]
    assert rows.lengths.tolist() == [len(one) + 2 for one in pieces]
    assert rows.ends.tolist() == [6, 9, 15]
    # the second word of the last row has no token
    assert rows.labels.tolist() == [
        *(-100, 1, -100, 0, 2, -100),
        *(-100, 0, -100),
        *(-100, 1, 2, -100, 0, -100),
    ]
    assert "1 of 8 words are cut off or have no token" in caplog.text
    for row, (end, length) in enumerate(zip(rows.ends, rows.lengths)):
        assert rows[row]["labels"].tolist() == rows.labels[end - length : end].tolist()
        assert len(rows[row]["input_ids"]) == length
    batch = rows.batch([1, 0])
    assert batch["labels"].tolist() == [[-100, 0, -100, -100, -100, -100], [-100, 1, -100, 0, 2, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    assert tokenizer.convert_ids_to_tokens(batch["input_ids"][0]) == ["[CLS]", "a", "[SEP]", *["[PAD]"] * 3]
    assert (rows.label_names, UNCOUNTED) == (TAGS, IGNORED_LABEL)


def test_words_that_are_cut_off_do_not_count(tokenizer, caplog):
    sentence = ["unbelievableness"] * 6
    with caplog.at_level(logging.WARNING):
        rows = TaskRows(_tagged([sentence], [[1, 2, 1, 2, 1, 2]]), tokenizer, max_length=9)
    # seven tokens of text: three words and the beginning of a fourth
    assert rows.labels.tolist() == [-100, 1, -100, 2, -100, 1, -100, 2, -100]
    assert "2 of 6 words are cut off" in caplog.text


def test_all_words_counted_say_nothing(tokenizer, caplog):
    TaskRows(_tagged([["a", "b"]], [[0, 1]]), tokenizer, max_length=16)
    assert "do not count" not in caplog.text


def test_byte_pair_encodings_see_the_blank_before_a_word(tmp_path):
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["the film rejects the films"] * 4, vocab_size=300)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="!")
    sentence = ["the", "film", "rejects"]
    rows = TaskRows(_tagged([sentence], [[0, 1, 2]]), tokenizer, max_length=32)
    assert rows[0]["input_ids"].tolist() == tokenizer("the film rejects")["input_ids"]
    blank = "\u0120"
    tokens = tokenizer.convert_ids_to_tokens(rows[0]["input_ids"])
    assert [tokens[place] for place in (rows.labels != -100).nonzero().flatten()] == ["the", f"{blank}film", *[
        token for token in tokens if token.startswith(f"{blank}re")
    ]]  # fmt: skip
    assert rows.labels[rows.labels != -100].tolist() == [0, 1, 2]


class _Slow(PreTrainedTokenizer):
    """Reads single letters, and does not know which word they are of."""

    @property
    def vocab_size(self):
        return 256

    def get_vocab(self):
        return {chr(number): number for number in range(256)}

    def _tokenize(self, text, **kwargs):
        return list(text)

    def _convert_token_to_id(self, token):
        return ord(token)

    def _convert_id_to_token(self, index):
        return chr(index)


def test_words_need_a_fast_tokenizer():
    with pytest.raises(UserError, match="_Slow does not tell which word a token is of; token classification needs a f"):
        TaskRows(_tagged([["a"]], [[0]]), _Slow(), max_length=16)
