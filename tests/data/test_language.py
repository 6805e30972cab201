"""The tokens that a language model has to predict, and the bytes of their text."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from elm_nni.data.language import LanguageData, LanguageRows, Masking, next_tokens, with_labels
from elm_nni.data.metrics import UNCOUNTED
from elm_nni.data.packing import PackedCorpus, pack_corpus
from elm_nni.errors import UserError

TEXTS = ["naïve café: a tale", "the second, rather longer document goes on and on and on and on", "no"] * 4


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a mask token."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>", "<mask>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<end>", pad_token="<end>", mask_token="<mask>"
    )


@pytest.fixture(scope="module")
def packed(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> PackedCorpus:
    folder: Path = tmp_path_factory.mktemp("packed")
    return pack_corpus(TEXTS, tokenizer, sequence_length=16, folder=folder, corpus_digest="texts")


def test_next_tokens_stay_in_their_document() -> None:
    ids_BT = torch.tensor([[5, 6, 7, 8, 0], [1, 2, 3, 4, 5], [1, 2, 0, 0, 0]])
    documents_BT = torch.tensor([[1, 1, 2, 2, 0], [1, 2, 3, 3, 3], [1, 1, 0, 0, 0]])
    expected = [[6, -100, 8, -100, -100], [-100, -100, 4, 5, -100], [2, -100, -100, -100, -100]]
    assert next_tokens(ids_BT, documents_BT).tolist() == expected


def test_a_share_of_tokens_is_hidden_as_bert_has_it() -> None:
    masking = Masking(mask_id=1, special_ids=(0, 1, 2), vocab_size=1000, share=0.15)
    rng = np.random.default_rng(0)
    ids_T = rng.integers(3, 1000, size=40_000)
    ids_T[::10] = 2
    valid_T = np.arange(len(ids_T)) < 30_000
    hidden_T, labels_T = masking(ids_T, valid_T, np.random.default_rng(1))
    chosen_T = labels_T != UNCOUNTED
    free_T = valid_T & (ids_T != 2)
    assert chosen_T.sum() == round(0.15 * free_T.sum())
    assert not (chosen_T & ~free_T).any()
    np.testing.assert_array_equal(labels_T[chosen_T], ids_T[chosen_T])
    np.testing.assert_array_equal(hidden_T[~chosen_T], ids_T[~chosen_T])
    masked, kept = hidden_T[chosen_T] == 1, hidden_T[chosen_T] == ids_T[chosen_T]
    drawn = hidden_T[chosen_T][~masked & ~kept]
    # three standard deviations of 4,050 draws
    assert masked.mean() == pytest.approx(0.8, abs=0.02)
    assert kept.mean() == pytest.approx(0.1, abs=0.015)
    assert drawn.min() >= 3
    assert len(np.unique(drawn)) > 200


def test_a_row_without_a_free_token_is_left_alone() -> None:
    masking = Masking(mask_id=1, special_ids=(0, 1), vocab_size=9)
    ids_T = np.array([0, 0, 5])
    hidden_T, labels_T = masking(ids_T, np.array([True, True, False]), np.random.default_rng(0))
    assert hidden_T.tolist() == ids_T.tolist()
    assert set(labels_T.tolist()) == {UNCOUNTED}
    # one token at least where one can be
    assert (masking(ids_T, np.full(3, True), np.random.default_rng(0))[1] != UNCOUNTED).sum() == 1


def test_masking_reads_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    assert Masking.of(tokenizer) == Masking(mask_id=1, special_ids=(0, 1), vocab_size=len(tokenizer))
    without = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(UserError, match="no mask token"):
        Masking.of(without)


def test_masks_of_an_evaluation_stay_and_those_of_training_change(
    packed: PackedCorpus, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = LanguageRows(packed, tokenizer, Masking.of(tokenizer), seed=3)
    again = LanguageRows(packed, tokenizer, Masking.of(tokenizer), seed=3)
    other = LanguageRows(packed, tokenizer, Masking.of(tokenizer), seed=4)
    both = rows.batch([0, 2])
    assert torch.equal(both["labels"][1], again.batch([2])["labels"][0])
    assert not torch.equal(both["input_ids"], other.batch([0, 2])["input_ids"])
    first, second = (rows.training_batch([0, 2], step) for step in (0, 1))
    assert torch.equal(first["labels"], again.training_batch([0, 2], 0)["labels"])
    assert not torch.equal(first["labels"], second["labels"])
    assert torch.equal(rows.labels, torch.cat([rows.batch([row])["labels"][0] for row in range(len(rows))]))


def test_labels_are_put_to_any_packed_batch(packed: PackedCorpus) -> None:
    batch = packed.batch([0, 1])
    found = with_labels(batch, None, lambda place: np.random.default_rng(place))
    assert torch.equal(found["labels"], next_tokens(batch["input_ids"], batch["document_ids"]))
    assert torch.equal(found["input_ids"], batch["input_ids"])


def test_bytes_are_those_of_the_text_but_for_the_first_token_of_each_piece(
    packed: PackedCorpus, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = LanguageRows(packed, tokenizer, None)
    # every token of this tokenizer is a number of bytes, so the pieces of a row can be told from its ids
    expected = 0
    for row in range(len(packed)):
        batch = packed.batch([row])
        ids, documents = batch["input_ids"][0].tolist(), batch["document_ids"][0].tolist()
        for place in range(1, len(ids)):
            if documents[place] and documents[place] == documents[place - 1] and ids[place] != 0:
                piece = tokenizer.backend_tokenizer.id_to_token(ids[place])
                expected += len(piece)
    assert rows.num_bytes == expected
    # the bytes of all texts, less the first token of each piece
    assert expected < sum(len(text.encode()) for text in TEXTS)


def test_what_a_text_task_reports() -> None:
    causal, masked = (LanguageData("text", kind, 64) for kind in ("causal_lm", "masked_lm"))
    assert causal.metrics == ("log_likelihood", "perplexity", "bits_per_byte")
    assert masked.metrics == ("log_likelihood", "perplexity")
