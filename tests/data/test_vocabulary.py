import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    ByT5Tokenizer,
    GPT2Tokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

from elm_nni.data import vocabulary
from elm_nni.data.corpora import corpus_texts, load_corpus
from elm_nni.data.offline import read_sotu, teacher_folder
from elm_nni.data.packing import pack_corpus
from elm_nni.data.rows import tokenizer_digest
from elm_nni.data.vocabulary import (
    TrimmedVocabulary,
    count_texts,
    count_tokens,
    num_ids,
    trim_tokenizer,
    vocabulary_table,
)
from elm_nni.data.vocabulary_rules import piece_model
from elm_nni.errors import UserError

KINDS = ("bert", "wordpiece", "gpt2", "roberta", "t5", "xlm-roberta", "unigram")
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ROLES = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")
# in no text of the corpus, and partly in no vocabulary
FOREIGN = "Ωμέγα, 北京 and naïve café ☃ 😀: 3 × 7 = 21 €"


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """The beginnings of reviews, and an address in pieces."""
    reviews = [text[:400] for text in islice(corpus_texts(load_corpus("offline:imdb")), 240)]
    address = read_sotu()[40]
    return [*reviews, *(address[at : at + 400] for at in range(0, 24_000, 400))]


@pytest.fixture(scope="module")
def counted(documents) -> list[str]:
    return [*documents[::2], FOREIGN]


@pytest.fixture(scope="module")
def other(documents) -> list[str]:
    return documents[1::8]


def _trained(model, trainer, pre_tokenizer, texts) -> Tokenizer:
    backend = Tokenizer(model)
    backend.normalizer, backend.pre_tokenizer = normalizers.NFKC(), pre_tokenizer
    backend.train_from_iterator(texts, trainer)
    return backend


def _model(backend) -> dict:
    return json.loads(backend.to_str())["model"]


@pytest.fixture(scope="module")
def tokenizers(documents):
    """One tokenizer a kind, the small ones trained on part of the text; none of them may be changed."""
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    quiet = {"show_progress": False}
    options = quiet | {"vocab_size": 3000, "special_tokens": SPECIAL}
    byte_pairs = Tokenizer(models.BPE())
    byte_pairs.pre_tokenizer = bytes_
    trainer = trainers.BpeTrainer(initial_alphabet=bytes_.alphabet(), **options)
    byte_pairs.train_from_iterator(documents[50:], trainer)
    pairs = _model(byte_pairs)
    merges = [tuple(pair) for pair in pairs["merges"]]
    words = _trained(
        models.WordPiece(unk_token="<unk>"),
        trainers.WordPieceTrainer(**options),
        pre_tokenizers.BertPreTokenizer(),
        documents[50:],
    )
    words.decoder = decoders.WordPiece()
    words.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))
    likely = _trained(
        models.Unigram(),
        trainers.UnigramTrainer(**quiet, vocab_size=2000, special_tokens=["<unk>"], unk_token="<unk>"),
        pre_tokenizers.Metaspace(),
        documents[50:],
    )
    scores = [tuple(entry) for entry in _model(likely)["vocab"][1:]]
    byte_scores = [(f"<0x{byte:02X}>", -15.0) for byte in range(256)]
    with_bytes = Tokenizer(models.Unigram([*scores, ("<unk>", 0.0), *byte_scores], len(scores), byte_fallback=True))
    with_bytes.pre_tokenizer = pre_tokenizers.Metaspace()
    with_bytes.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    end = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    sentinels = [(f"<extra_id_{number}>", 0.0) for number in reversed(range(100))]
    begin = [(token, 0.0) for token in SPECIAL[:4]]
    return {
        "bert": AutoTokenizer.from_pretrained(teacher_folder()),
        "wordpiece": PreTrainedTokenizerFast(
            tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", mask_token="<mask>", padding_side="left"
        ),
        "gpt2": GPT2Tokenizer(vocab={**pairs["vocab"], "<|endoftext|>": 3000}, merges=merges),
        "roberta": RobertaTokenizer(vocab=pairs["vocab"], merges=merges),
        "t5": T5Tokenizer(vocab=[*end, *scores, *sentinels]),
        "xlm-roberta": XLMRobertaTokenizer(vocab=[*begin, *scores, ("<mask>", 0.0)]),
        "unigram": PreTrainedTokenizerFast(tokenizer_object=with_bytes, unk_token="<unk>", pad_token="<pad>"),
    }


def _ids(tokenizer, texts):
    return tokenizer(texts, verbose=False)["input_ids"]


def _num_unknown(tokenizer, texts) -> int:
    return sum(row.count(tokenizer.unk_token_id) for row in _ids(tokenizer, texts))


@pytest.mark.parametrize("kind", KINDS)
def test_counted_texts_keep_their_tokens_also_after_saving(tokenizers, counted, other, kind, tmp_path):
    original = tokenizers[kind]
    counts_V = count_texts(counted, original)
    for alphabet in ("all", "used"):
        trimmed = trim_tokenizer(original, counts_V, alphabet=alphabet)
        assert [trimmed.kept_ids_V[row].tolist() for row in _ids(trimmed.tokenizer, counted)] == _ids(original, counted)
        assert trimmed.coverage == 1.0
        assert len(trimmed) == num_ids(trimmed.tokenizer) < num_ids(original) == len(trimmed) + trimmed.num_dropped
        trimmed.save(tmp_path / alphabet)
        loaded = TrimmedVocabulary.load(tmp_path / alphabet)
        assert type(loaded.tokenizer) is type(trimmed.tokenizer) is type(original)
        assert loaded.kept_ids_V.tolist() == trimmed.kept_ids_V.tolist()
        assert (loaded.coverage, loaded.num_original) == (trimmed.coverage, trimmed.num_original)
        texts = [*counted[:20], *other[:20]]
        assert _ids(loaded.tokenizer, texts) == _ids(trimmed.tokenizer, texts)


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_and_templates_mean_the_same(tokenizers, counted, kind):
    original = tokenizers[kind]
    trimmed = trim_tokenizer(original, count_texts(counted[:3], original))
    for role in ROLES:
        old, new = (getattr(each, f"{role}_token_id") for each in (original, trimmed.tokenizer))
        assert old == (None if new is None else trimmed.kept_ids_V[new])
    assert trimmed.kept_ids_V.tolist() == sorted(set(trimmed.kept_ids_V.tolist()))
    pair = trimmed.tokenizer(counted[0], counted[1])
    assert trimmed.kept_ids_V[pair["input_ids"]].tolist() == original(counted[0], counted[1])["input_ids"]
    assert set(pair) == set(original("a"))
    special = "".join(token for token in original.all_special_tokens[:3])
    assert trimmed.kept_ids_V[trimmed.tokenizer(special)["input_ids"]].tolist() == original(special)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", ["min_count", "max_size"])
def test_dropped_tokens_fall_back_to_shorter_ones(tokenizers, counted, other, kind, limit):
    original = tokenizers[kind]
    counts_V = count_texts(counted, original)
    most = 2300 if kind == "bert" else 1000
    trimmed = trim_tokenizer(original, counts_V, **{limit: {"min_count": 4, "max_size": most}[limit]})
    texts = [*counted, *other]
    before, after = _ids(original, texts), _ids(trimmed.tokenizer, texts)
    assert sum(map(len, after)) > sum(map(len, before))
    assert _num_unknown(trimmed.tokenizer, texts) == _num_unknown(original, texts)
    assert trimmed.tokenizer.batch_decode(after) == original.batch_decode(before)
    assert trimmed.tokenizer.convert_ids_to_tokens(range(len(trimmed))) == original.convert_ids_to_tokens(
        trimmed.kept_ids_V.tolist()
    )
    assert trimmed.coverage == counts_V[trimmed.kept_ids_V].sum() / counts_V.sum() < 1
    if limit == "max_size":
        assert len(trimmed) == most
    else:
        assert set(np.flatnonzero(counts_V >= 4)) <= set(trimmed.kept_ids_V.tolist())


def test_alphabet_of_the_teacher(tokenizers, counted):
    original = tokenizers["bert"]
    counts_V = count_texts(counted[:-1], original)
    every, used = (trim_tokenizer(original, counts_V, alphabet=which) for which in ("all", "used"))
    single = [token for token in original.get_vocab() if len(token.removeprefix("##")) == 1]
    assert len(single) == 1994
    assert set(original.convert_tokens_to_ids(single)) <= set(every.kept_ids_V.tolist())
    kept = set(used.kept_ids_V.tolist())
    assert 136 <= sum(id in kept for id in original.convert_tokens_to_ids(single)) < 250
    assert _num_unknown(every.tokenizer, [FOREIGN]) == _num_unknown(original, [FOREIGN]) == 2
    assert _num_unknown(used.tokenizer, [FOREIGN]) > 2
    assert _num_unknown(used.tokenizer, counted[:-1]) == 0
    # a digit that no counted text has
    few = trim_tokenizer(original, count_texts(["a film"], original), alphabet="used")
    assert _num_unknown(few.tokenizer, ["7 films (of 9)?"]) == 0


def test_byte_pairs_keep_bytes_and_the_parts_of_kept_tokens(tokenizers, counted):
    trimmed = trim_tokenizer(tokenizers["gpt2"], count_texts(counted[:1], tokenizers["gpt2"]), alphabet="used")
    model = _model(trimmed.tokenizer.backend_tokenizer)
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(model["vocab"])
    made = {left + right for left, right in model["merges"]}
    assert {token for token in model["vocab"] if len(token) > 1} - {"<|endoftext|>", *SPECIAL} == made
    assert {part for pair in model["merges"] for part in pair} <= set(model["vocab"])
    assert trimmed.tokenizer.decode(trimmed.tokenizer(FOREIGN)["input_ids"]) == FOREIGN


def test_every_way_to_make_a_byte_pair_token_is_kept():
    vocabulary = {token: id for id, token in enumerate(["a", "b", "c", "x", "y", "ab", "bc", "abc", "xy"])}
    merges = [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc"), ("x", "y")]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    original = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=None, eos_token=None)
    trimmed = trim_tokenizer(original, count_texts(["abc"], original))
    assert trimmed.kept_ids_V.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert _model(trimmed.tokenizer.backend_tokenizer)["merges"] == [["b", "c"], ["a", "b"], ["ab", "c"], ["a", "bc"]]
    assert trimmed.tokenizer.tokenize("abcxy") == ["abc", "x", "y"]


def test_unigram_keeps_the_lowest_score_since_unknown_characters_cost_by_it():
    # Without the piece of score -30 an unknown q would cost 16 and abcde + q be the likelier way.
    pieces = [("<unk>", 0.0), *((letter, -6.0) for letter in "abcde"), ("ab", -6.0), ("cd", -6.0), ("eq", -6.0)]
    backend = Tokenizer(models.Unigram([*pieces, ("abcde", -1.0), ("ζη", -30.0), ("ζ", -6.0), ("η", -6.0)], 0))
    original = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token=None, eos_token=None)
    texts = ["abcdeq", "abcde"]
    trimmed = trim_tokenizer(original, count_texts(texts, original), alphabet="used")
    assert [trimmed.tokenizer.tokenize(text) for text in texts] == [["ab", "cd", "eq"], ["abcde"]]
    assert trimmed.tokenizer.get_vocab().keys() == original.get_vocab().keys() - {"ζ", "η"}


def test_pieces_that_cannot_be_spelled_belong_to_the_alphabet():
    vocabulary = {token: id for id, token in enumerate(["[UNK]", "a", "##a", "aq", "aa", "ζζ"])}
    settings = {"type": "WordPiece", "vocab": vocabulary, "continuing_subword_prefix": "##", "unk_token": "[UNK]"}
    assert piece_model(settings).alphabet(None) == {0, 1, 2, 3, 5}
    assert piece_model(settings).alphabet({"a"}) == {1, 2}
    ended = {"a": 0, "b</w>": 1, "ab</w>": 2, "ab": 3, "abb</w>": 4, "b": 5}
    byte_pair = {"type": "BPE", "vocab": ended, "merges": ["a b</w>"], "end_of_word_suffix": "</w>"}
    assert piece_model(byte_pair).alphabet(None) == {0, 1, 5}
    assert piece_model(byte_pair).spelled("abb</w>") == ["a", "b", "b</w>"]


@pytest.mark.parametrize("template", ["bert", "roberta", "template", "sequence"])
def test_templates_hold_the_new_ids(template):
    words = ["?", "αα", "ββ", "γγ", "end", "begin", "pad"]
    backend = Tokenizer(models.WordPiece({word: id for id, word in enumerate(words)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = processors.TemplateProcessing(single="begin $A end", special_tokens=[("begin", 5), ("end", 4)])
    backend.post_processor = {
        "bert": processors.BertProcessing(("end", 4), ("begin", 5)),
        "roberta": processors.RobertaProcessing(("end", 4), ("begin", 5)),
        "template": tokens,
        "sequence": processors.Sequence([processors.ByteLevel(), tokens]),
    }[template]
    original = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?", pad_token="pad")
    original(["γγ", "ββ γγ"], padding=True)
    trimmed = trim_tokenizer(original, count_texts(["γγ"], original), alphabet="used")
    ids = trimmed.tokenizer(["γγ", "γγ γγ αα"], padding=True)["input_ids"]
    assert trimmed.kept_ids_V[ids].tolist() == [[5, 3, 4, 6, 6], [5, 3, 3, 0, 4]]
    padded = trimmed.tokenizer.backend_tokenizer.padding
    assert padded["pad_id"] == trimmed.tokenizer.pad_token_id == 4


def test_settings_and_added_tokens_are_kept_and_the_original_stays(tmp_path):
    original = BertTokenizer(vocab=AutoTokenizer.from_pretrained(teacher_folder()).get_vocab())
    original.add_tokens(["elasticity", "[unused7]"])
    original.padding_side, original.truncation_side, original.model_max_length = "left", "left", 77
    original.chat_template = "{{ messages }}"
    before = tokenizer_digest(original)
    trimmed = trim_tokenizer(original, count_texts(["a film"], original))
    trimmed.save(tmp_path)
    for tokenizer in (trimmed.tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length) == ("left", "left", 77)
        assert tokenizer.chat_template == "{{ messages }}"
        text = "a film of elasticity [unused7]"
        assert tokenizer.tokenize(text)[::2] == ["a", "o", "elasticity"]
        assert trimmed.kept_ids_V[tokenizer("elasticity")["input_ids"]].tolist() == [101, 30522, 102]
    assert trimmed.tokenizer.name_or_path == original.name_or_path
    assert tokenizer_digest(original) == before


def test_a_class_that_builds_its_own_backend_gives_way_where_that_would_change_the_text(counted):
    original = AutoTokenizer.from_pretrained(teacher_folder())
    original.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    trimmed = trim_tokenizer(original, count_texts(counted[:20], original))
    assert type(trimmed.tokenizer) is PreTrainedTokenizerFast
    assert [trimmed.kept_ids_V[row].tolist() for row in _ids(trimmed.tokenizer, counted[:20])] == _ids(
        original, counted[:20]
    )
    assert set(trimmed.tokenizer("a", "b")) == set(original("a", "b"))


def test_counts_of_a_packed_corpus_are_those_of_its_rows(tokenizers, counted, tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary, "_COUNT_ROWS", 7)
    tokenizer = tokenizers["bert"]
    packed = pack_corpus(counted[:40], tokenizer, sequence_length=64, folder=tmp_path, corpus_digest="forty")
    for part in (packed, packed.split(20)[1]):
        rows = part.batch(range(len(part)))
        expected = Counter(rows["input_ids"][rows["attention_mask"] == 1].tolist())
        counts_V = count_tokens(part, num_ids(tokenizer))
        assert counts_V.dtype == np.int64
        assert {id: int(counts_V[id]) for id in np.flatnonzero(counts_V)} == expected
    text_counts_V = count_texts(counted[:40], tokenizer)
    whole_V = count_tokens(packed, num_ids(tokenizer))
    assert (np.delete(whole_V, [101, 102]) == np.delete(text_counts_V, [101, 102])).all()
    assert whole_V.sum() == packed.num_tokens
    trimmed = trim_tokenizer(tokenizer, whole_V)
    again = pack_corpus(counted[:40], trimmed.tokenizer, sequence_length=64, folder=tmp_path, corpus_digest="forty")
    assert again.folder != packed.folder
    ids_BT = again.batch(range(len(again)))["input_ids"].numpy()
    assert (trimmed.kept_ids_V[ids_BT] == packed.batch(range(len(packed)))["input_ids"].numpy()).all()
    assert (trimmed.remap(packed.batch(range(len(packed)))["input_ids"]) == ids_BT).all()


def test_counting_refuses_ids_outside_and_takes_nothing():
    assert count_tokens([], 3).tolist() == [0, 0, 0]
    assert count_tokens([[], [[1, 1], [0, 2]]], 3).tolist() == [1, 2, 1]
    for wrong in (3, -1):
        with pytest.raises(UserError, match=f"range over {min(0, wrong)}..{max(0, wrong)}: must lie within 0..2"):
            count_tokens([[0, wrong]], 3)


def test_remap_refuses_what_was_dropped(tokenizers):
    trimmed = trim_tokenizer(tokenizers["bert"], count_texts(["a film"], tokenizers["bert"]))
    assert trimmed.kept_ids_V[trimmed.remap([[101, 2143], [2143, 102]])].tolist() == [[101, 2143], [2143, 102]]
    for wrong in (2003, 99999, -1):
        with pytest.raises(KeyError, match=f"token id {wrong} is not in the trimmed vocabulary"):
            trimmed.remap([101, wrong])


def test_vocabulary_table_takes_the_most_frequent():
    lines = vocabulary_table([0, 10, 1, 60, 29], 128, [1, 3, 9])
    assert [(line.num_tokens, line.coverage, line.num_parameters) for line in lines] == [
        (1, 0.60, 128),
        (3, 0.99, 384),
        (5, 1.0, 640),
    ]
    assert str(lines[1]) == "3 tokens: 99.0% of the corpus, 384 parameters"
    assert vocabulary_table([0, 0], 4, [1])[0].coverage == 0.0
    for embedding_size, sizes in ((0, [1]), (1, [0])):
        with pytest.raises(ValueError, match="must be at least 1"):
            vocabulary_table([1], embedding_size, sizes)


def test_mistakes_are_one_clear_line(tokenizers):
    bert = tokenizers["bert"]
    counts_V = count_texts(["a film"], bert)
    with pytest.raises(UserError, match="ByT5Tokenizer is a slow one: only fast tokenizers"):
        trim_tokenizer(ByT5Tokenizer(), counts_V)
    levels = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(UserError, match="type WordLevel cannot be trimmed; allowed: WordPiece, BPE, Unigram"):
        trim_tokenizer(levels, [1])
    with pytest.raises(UserError, match=r"counts have shape \(30521,\): must be \(30522,\)"):
        trim_tokenizer(bert, counts_V[1:])
    with pytest.raises(UserError, match='max_size=1998: must be at least 1999, .*; alphabet="used" needs fewer'):
        trim_tokenizer(bert, counts_V, max_size=1998)
    assert len(trim_tokenizer(bert, counts_V, max_size=1999)) == 1999
    with pytest.raises(UserError, match=r"max_size=50: must be at least \d+, .* of this tokenizer$"):
        trim_tokenizer(bert, counts_V, max_size=50, alphabet="used")
    with pytest.raises(ValueError, match="min_count must be at least 1, got 0"):
        trim_tokenizer(bert, counts_V, min_count=0)
    with pytest.raises(ValueError, match="alphabet must be all or used, got 'some'"):
        trim_tokenizer(bert, counts_V, alphabet="some")


def test_loading_refuses_changed_files(tokenizers, tmp_path):
    with pytest.raises(UserError, match="holds no trimmed vocabulary"):
        TrimmedVocabulary.load(tmp_path)
    trimmed = trim_tokenizer(tokenizers["bert"], count_texts(["a film"], tokenizers["bert"]), alphabet="used")
    trimmed.save(tmp_path)
    path = tmp_path / "kept_ids.json"
    facts = json.loads(path.read_text())
    for key, value in (("kept_ids", facts["kept_ids"][:-1]), ("digest", "0" * 16), ("kept_ids", ["a"])):
        path.write_text(json.dumps(facts | {key: value}))
        with pytest.raises(UserError, match="must be files of one trimmed vocabulary|holds no trimmed vocabulary"):
            TrimmedVocabulary.load(tmp_path)
    path.write_text(json.dumps(facts))
    assert TrimmedVocabulary.load(tmp_path).digest == trimmed.digest
    larger = trim_tokenizer(tokenizers["bert"], count_texts(["a longer film"], tokenizers["bert"]), alphabet="used")
    assert larger.digest != trimmed.digest
    larger.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"names {len(trimmed)} tokens, the tokenizer has {len(larger)}"):
        TrimmedVocabulary.load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot"):
        trimmed.save(tmp_path / "file" / "folder")
