import numpy as np
import pytest
from transformers import AutoTokenizer

from elm_nni.data.offline import read_sotu, teacher_folder
from elm_nni.data.rows import Layout, Position, pack_rows, tokenize_documents, tokenizer_digest

BERT = Layout(sequence_length=10, prefix=(101,), suffix=(102,), ending=(), pad_id=0)


def _lines(documents, layout=BERT):
    rows = list(pack_rows(documents, layout))
    return [row.input_ids_T.tolist() for row in rows], [row.document_ids_T.tolist() for row in rows]


def test_short_documents_share_a_row_and_are_not_cut():
    ids, documents = _lines([[1, 2, 3], [], [4, 5], [6, 7, 8], [9]])
    assert ids == [[101, 1, 2, 3, 102, 101, 4, 5, 102, 0], [101, 6, 7, 8, 102, 101, 9, 102, 0, 0]]
    assert documents == [[1] * 5 + [2] * 4 + [0], [1] * 5 + [2] * 3 + [0, 0]]


def test_long_documents_fill_the_open_row_and_their_tail_shares_one():
    ids, documents = _lines([[1, 2], list(range(10, 24)), [3]])
    assert ids == [
        [101, 1, 2, 102, 101, 10, 11, 12, 13, 102],
        [101, 14, 15, 16, 17, 18, 19, 20, 21, 102],
        [101, 22, 23, 102, 101, 3, 102, 0, 0, 0],
    ]
    assert documents == [[1] * 4 + [2] * 6, [1] * 10, [1] * 4 + [2] * 3 + [0] * 3]


def test_without_a_frame_documents_end_with_the_ending():
    layout = Layout(sequence_length=6, prefix=(), suffix=(), ending=(9,), pad_id=7)
    ids, documents = _lines([[1, 2], [3], [], list(range(10, 17))], layout)
    assert ids == [[1, 2, 9, 3, 9, 10], [11, 12, 13, 14, 15, 16], [9, 7, 7, 7, 7, 7]]
    assert documents == [[1, 1, 1, 2, 2, 3], [1] * 6, [1, 0, 0, 0, 0, 0]]


def test_every_token_is_there_once_and_in_order():
    rng = np.random.default_rng(0)
    documents = [list(range(1000, 1000 + size)) for size in rng.integers(0, 200, 300)]
    layout = Layout(sequence_length=64, prefix=(1,), suffix=(2,), ending=(), pad_id=0)
    rows = list(pack_rows(documents, layout))
    tokens = np.concatenate([row.input_ids_T for row in rows])
    assert tokens[tokens >= 1000].tolist() == [token for document in documents for token in document]
    for row in rows:
        for number in range(1, row.document_ids_T.max() + 1):
            piece = row.input_ids_T[row.document_ids_T == number]
            assert (piece[0], piece[-1]) == (1, 2)
            assert (piece[1:-1] >= 1000).all()
            assert (np.diff(np.flatnonzero(row.document_ids_T == number)) == 1).all()
        assert (row.input_ids_T[row.document_ids_T == 0] == 0).all()


def test_packing_can_go_on_from_any_row():
    rng = np.random.default_rng(1)
    documents = [list(range(size)) for size in rng.integers(0, 40, 60)]
    rows = list(pack_rows(documents, BERT))
    for number, row in enumerate(rows):
        rest = list(pack_rows(documents[row.next.document :], BERT, row.next))
        assert [each.input_ids_T.tolist() for each in rest] == [
            each.input_ids_T.tolist() for each in rows[number + 1 :]
        ]
        assert [each.next for each in rest] == [each.next for each in rows[number + 1 :]]
    assert rows[-1].next == Position(0, 60, 0)


def test_layout_of_the_teacher(tokenizer):
    assert Layout.of(tokenizer, 128) == Layout(128, (101,), (102,), (), 0)
    with pytest.raises(ValueError, match="sequence_length must be at least 6 for this tokenizer, got 5"):
        Layout.of(tokenizer, 5)


def test_tokens_are_those_of_single_calls_in_any_batch(tokenizer):
    texts = ["", *read_sotu()[:3], "A film."]
    single = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    for batch_size in (1, 2, 256):
        assert list(tokenize_documents(texts, tokenizer, batch_size)) == single


def test_tokenizer_digest_ignores_use_and_sees_changes():
    one, two = (AutoTokenizer.from_pretrained(teacher_folder()) for _ in range(2))
    before = tokenizer_digest(one)
    one(["a", "a b"], padding=True, truncation=True, max_length=3)
    assert tokenizer_digest(one) == before == tokenizer_digest(two)
    two.add_tokens(["newword"])
    assert tokenizer_digest(two) != before
