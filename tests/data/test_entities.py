"""Entities against another formulation of the rules: where one ends and where one starts, read token by token."""

import numpy as np
import pytest

from elm_nni.data.entities import entity_f1, has_entity_tags

TAG_SETS = {
    "BIO": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
    "BIOES": ("O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("PER", "LOC"))),
    "one type without a name": ("I", "O", "B"),
    "words": ("NOUN", "VERB", "O"),
    "mixed": ("O", "B-PER", "I-PER", "PER"),
}


LETTERS = ("N", "V", "I", "S", "O")


def _split(tag):
    if tag == "O":
        return "O", ""
    prefix, dash, kind = tag.partition("-")
    return (prefix, kind) if dash or tag in "BIES" else ("", tag)


def _ends(tag, following):
    return following[0] not in ("I", "E") or tag[0] not in ("B", "I") or tag[1] != following[1]


def _entities(tags):
    """List of (first, last, type) of one row."""
    found, first = [], None
    for place, tag in enumerate(tags):
        if tag == "O":
            continue
        if first is None:
            first = place
        following = tags[place + 1] if place + 1 < len(tags) else "O"
        if _ends(_split(tag), _split(following)):
            found.append((first, place, _split(tag)))
            first = None
    # the type alone counts, and whether there is a prefix at all
    return [(first, last, bool(prefix), kind) for first, last, (prefix, kind) in found]


def _oracle(predictions, labels, lengths, names):
    hits = total = start = 0
    for length in lengths:
        rows = [[names[tag] for tag in side[start : start + length]] for side in (predictions, labels)]
        found, wanted = map(_entities, rows)
        hits += sum(entity in wanted for entity in found)
        total += len(found) + len(wanted)
        start += length
    return 2 * hits / total if total else 0.0


@pytest.mark.parametrize("names", TAG_SETS.values(), ids=TAG_SETS)
def test_f1_is_that_of_reading_token_by_token(names):
    rng = np.random.default_rng(len(names))
    scores = []
    for _ in range(60):
        lengths = rng.integers(0, 7, 12)
        labels = rng.integers(0, len(names), lengths.sum())
        predictions = np.where(rng.random(len(labels)) < 0.6, labels, rng.integers(0, len(names), len(labels)))
        scores.append(entity_f1(predictions, labels, lengths=lengths, label_names=names))
        assert scores[-1] == pytest.approx(_oracle(predictions, labels, lengths, names))
    assert 0.1 < np.mean(scores) < 0.9


def test_letters_among_other_tags_are_tags_of_one_token():
    # I after I would go on as an entity: then one of two would be found here
    labels, predictions = ([LETTERS.index(tag) for tag in tags] for tags in ("NIIV", "NIVV"))
    assert entity_f1(predictions, labels, lengths=[4], label_names=LETTERS) == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("labels", "predictions", "expected"),
    [
        ("B-PER I-PER O", "B-PER I-PER O", 1.0),
        # the last token is wrong, so is the entity
        ("B-PER I-PER O", "B-PER O O", 0.0),
        # the type is wrong
        ("B-PER I-PER O", "B-LOC I-LOC O", 0.0),
        # two against one
        ("B-PER B-PER", "B-PER I-PER", 0.0),
        # I after O begins an entity
        ("B-PER I-PER O", "I-PER I-PER O", 1.0),
        # I of another type begins one too: PER is found, LOC is too many
        ("B-PER O", "B-PER I-LOC", 2 / 3),
        ("O O", "O O", 0.0),
    ],
)
def test_by_hand(labels, predictions, expected):
    names = TAG_SETS["BIO"]
    sides = [[names.index(tag) for tag in side.split()] for side in (predictions, labels)]
    assert entity_f1(*sides, lengths=[len(sides[0])], label_names=names) == pytest.approx(expected)


def test_tags_without_prefix_and_without_outside_are_scored_by_accuracy():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 3, 50), rng.integers(0, 3, 50)
    f1 = entity_f1(predictions, labels, lengths=[20, 30], label_names=("NOUN", "VERB", "ADJ"))
    assert f1 == pytest.approx((labels == predictions).mean())


def test_has_entity_tags():
    assert has_entity_tags(TAG_SETS["BIO"])
    assert has_entity_tags(TAG_SETS["one type without a name"])
    assert not has_entity_tags(TAG_SETS["words"])
    assert not has_entity_tags(LETTERS)


def test_bad_input():
    with pytest.raises(ValueError, match="lengths add up to 3 tokens, but there are 2 predictions and 2 labels"):
        entity_f1([0, 1], [0, 1], lengths=[3], label_names=("O", "B-X"))
    with pytest.raises(ValueError, match=r"tags must be ids within 0..1, got 0..2"):
        entity_f1([0, 2], [0, 1], lengths=[2], label_names=("O", "B-X"))
