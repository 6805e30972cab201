"""Losses and scores of each kind of task against formulas written out."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from elm_nni.errors import UserError
from elm_nni.kinds import KINDS, language_kind, logits_of
from elm_nni.kinds.tokens import MOST_TOKENS


@dataclass(frozen=True)
class Settings:
    logits: str = "relational"
    beta: float = 1.0
    gamma: float = 1.0
    tau: float = 2.0
    lambda_logit: float = 0.0
    lambda_label: float = 1.0


def rows_of(labels: torch.Tensor, lengths: list[int] | None = None) -> SimpleNamespace:
    return SimpleNamespace(labels=labels, lengths=np.asarray(lengths or [1] * len(labels)))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_every_kind_is_known_by_its_name() -> None:
    assert {name: kind.name for name, kind in KINDS.items()} == {name: name for name in KINDS}
    assert sorted(KINDS) == [
        "causal_lm", "classification", "masked_lm", "multi_label", "question_answering", "regression",
        "sentence_embedding", "token_classification",
    ]  # fmt: skip


# --- several labels ---

def test_multi_label_loss_is_the_mean_binary_cross_entropy() -> None:
    logits_BC, labels_BC = drawn(4, 3), torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0.0]])
    probabilities = 1 / (1 + np.exp(-logits_BC.numpy()))
    expected = -np.mean(np.where(labels_BC.numpy() == 1, np.log(probabilities), np.log(1 - probabilities)))
    found = KINDS["multi_label"].loss(logits_BC, {"labels": labels_BC}, Settings(lambda_label=0.5))
    assert float(found) == pytest.approx(0.5 * expected, rel=1e-6)


def test_multi_label_logit_terms_take_each_label_by_itself() -> None:
    logits_BC, teacher_BC, tau = drawn(5, 3), drawn(5, 3, seed=1), 2.0
    batch = {"labels": torch.zeros(5, 3), "teacher_logits": teacher_BC}
    kind = KINDS["multi_label"]

    def added(how: str) -> float:
        plain = kind.loss(logits_BC, batch, Settings(logits=how))
        return float(kind.loss(logits_BC, batch, Settings(logits=how, lambda_logit=1.0)) - plain)

    p, q = (1 / (1 + np.exp(-x.double().numpy() / tau)) for x in (logits_BC, teacher_BC))
    divergence = (q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))).sum(1).mean()
    assert added("kl") == pytest.approx(tau**2 * divergence, rel=1e-4)
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T)])
    assert added("relational") == pytest.approx(tau**2 * (inter + intra), rel=1e-4)


def test_multi_label_scores_count_a_label_from_a_half_on() -> None:
    logits_NC, labels_NC = torch.tensor([[0.1, -0.1], [2.0, 3.0]]), torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    found = KINDS["multi_label"].scores(("f1_micro", "subset_accuracy"), logits_NC, rows_of(labels_NC))
    assert found == {"f1_micro": pytest.approx(6 / 7), "subset_accuracy": 0.5}


# --- classes of tokens ---

def test_token_loss_reads_counted_tokens_alone() -> None:
    kind, logits_BTC = KINDS["token_classification"], drawn(2, 4, 3)
    labels_BT = torch.tensor([[-100, 2, 0, -100], [1, -100, -100, -100]])
    counted = [(0, 1, 2), (0, 2, 0), (1, 0, 1)]
    expected = -np.mean([float(functional.log_softmax(logits_BTC[b, t], -1)[c]) for b, t, c in counted])
    assert float(kind.loss(logits_BTC, {"labels": labels_BT}, Settings())) == pytest.approx(expected, rel=1e-6)
    changed = logits_BTC.clone()
    changed[labels_BT == -100] = float("nan")
    assert float(kind.loss(changed, {"labels": labels_BT}, Settings())) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("how", ["relational", "kl"])
def test_token_logit_term_is_that_of_the_counted_tokens(how: str) -> None:
    kind, logits_BTC, teacher_BTC = KINDS["token_classification"], drawn(2, 4, 3), drawn(2, 4, 3, seed=1)
    labels_BT = torch.tensor([[-100, 2, 0, -100], [1, -100, 2, 0]])
    counted = labels_BT != -100
    flat = KINDS["classification"].loss(
        logits_BTC[counted], {"labels": labels_BT[counted], "teacher_logits": teacher_BTC[counted]},
        Settings(logits=how, lambda_logit=0.7),
    )  # fmt: skip
    batch = {"labels": labels_BT, "teacher_logits": teacher_BTC}
    found = kind.loss(logits_BTC, batch, Settings(logits=how, lambda_logit=0.7))
    assert float(found) == pytest.approx(float(flat), rel=1e-6)


@pytest.mark.parametrize("how", ["relational", "kl"])
def test_a_batch_without_a_counted_token_has_loss_0(how: str) -> None:
    logits_BTC = drawn(1, 3, 2).requires_grad_()
    batch = {"labels": torch.full((1, 3), -100), "teacher_logits": drawn(1, 3, 2)}
    loss = KINDS["token_classification"].loss(logits_BTC, batch, Settings(logits=how, lambda_logit=1.0))
    loss.backward()
    assert loss.item() == 0.0
    assert not logits_BTC.grad.any()


def test_token_head_is_fitted_on_counted_tokens() -> None:
    features_ND, labels = drawn(600, 2), torch.full((600,), -100)
    labels[::2] = (features_ND[::2, 0] > 0).long()
    # what is not counted would teach the opposite
    features_ND[1::2, 0] *= -1
    head = KINDS["token_classification"].fit_head(features_ND, labels, num_outputs=2, seed=0)
    assert float((head(features_ND[::2]).argmax(1) == labels[::2]).float().mean()) > 0.95


def test_token_head_takes_no_more_tokens_than_help(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        "elm_nni.kinds.base.fit_linear_head", lambda features, labels, **_: seen.append((features, labels))
    )
    labels = torch.arange(MOST_TOKENS + 500) % 2
    features_N1 = torch.arange(len(labels)).float().unsqueeze(1)
    KINDS["token_classification"].fit_head(features_N1, labels, num_outputs=2, seed=0)
    features, chosen = seen[0]
    assert len(features) == MOST_TOKENS == len(features.unique())
    assert torch.equal(features.squeeze(1).long() % 2, chosen)


# --- answers ---

def answers(padding: int) -> dict[str, torch.Tensor]:
    """Two windows of 4 and 6 tokens, and further padding; logits at padding are anything."""
    mask_BT = torch.zeros(2, 6 + padding, dtype=torch.long)
    mask_BT[0, :4], mask_BT[1, :6] = 1, 1
    return {"attention_mask": mask_BT, "labels": torch.tensor([[1, 3], [0, 0]])}


def padded(logits_BTC: torch.Tensor, padding: int) -> torch.Tensor:
    return torch.cat([logits_BTC, 50 * torch.ones(2, padding, 2)], dim=1)


@pytest.mark.parametrize("how", ["relational", "kl"])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_answers_do_not_depend_on_padding(how: str, weight: float) -> None:
    logits_BTC, teacher_BTC, kind = drawn(2, 6, 2), drawn(2, 6, 2, seed=1), KINDS["question_answering"]
    settings = Settings(logits=how, lambda_logit=weight)
    found = [
        float(kind.loss(padded(logits_BTC, n), {**answers(n), "teacher_logits": padded(teacher_BTC, n)}, settings))
        for n in (0, 3)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_answer_loss_is_the_mean_over_starts_and_ends() -> None:
    logits_BTC = drawn(2, 6, 2)
    parts = [
        -float(functional.log_softmax(logits_BTC[b, :length, side], -1)[place])
        for b, length, places in ((0, 4, (1, 3)), (1, 6, (0, 0)))
        for side, place in enumerate(places)
    ]
    found = KINDS["question_answering"].loss(logits_BTC, answers(0), Settings())
    assert float(found) == pytest.approx(np.mean(parts), rel=1e-5)


def test_answer_logit_terms_compare_positions_of_a_window() -> None:
    logits_BTC, teacher_BTC, tau = drawn(2, 6, 2), drawn(2, 6, 2, seed=1), 2.0
    batch, kind = {**answers(0), "teacher_logits": teacher_BTC}, KINDS["question_answering"]
    correlations, divergences = [], []
    for b, length in ((0, 4), (1, 6)):
        for side in (0, 1):
            pair = (x[b, :length, side].double() / tau for x in (logits_BTC, teacher_BTC))
            p, q = (functional.softmax(x, -1).numpy() for x in pair)
            correlations.append(1 - np.corrcoef(p, q)[0, 1])
            divergences.append((q * np.log(q / p)).sum())
    plain = float(kind.loss(logits_BTC, batch, Settings()))
    relational = float(kind.loss(logits_BTC, batch, Settings(lambda_logit=1.0))) - plain
    divergence = float(kind.loss(logits_BTC, batch, Settings(logits="kl", lambda_logit=1.0))) - plain
    assert relational == pytest.approx(tau**2 * np.mean(correlations), rel=1e-4)
    assert divergence == pytest.approx(tau**2 * np.mean(divergences), rel=1e-4)


def test_no_linear_head_teaches_answers() -> None:
    with pytest.raises(UserError, match="teacher.head: linear is not allowed for question_answering"):
        KINDS["question_answering"].fit_head(drawn(20, 3), torch.zeros(20, 2), num_outputs=2, seed=0)


# --- sentence embeddings ---

def unit(vectors: torch.Tensor) -> np.ndarray:
    found = vectors.double().numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("how", ["relational", "kl"])
def test_embedding_loss_compares_vectors_and_their_relations(how: str) -> None:
    student_BE, teacher_BE = drawn(5, 4), drawn(5, 4, seed=1)
    settings = Settings(logits=how, tau=2.0, beta=0.5, lambda_logit=0.3)
    found = KINDS["sentence_embedding"].loss(student_BE, {"teacher_logits": teacher_BE}, settings)
    a, b = unit(student_BE), unit(teacher_BE)
    cosine = 1 - (a * b).sum(1).mean()
    rows = [(np.delete(a @ a[i], i), np.delete(b @ b[i], i)) for i in range(5)]
    if how == "relational":
        relation = 0.5 * np.mean([1 - np.corrcoef(p, q)[0, 1] for p, q in rows])
    else:
        soft = [[np.exp(x / 0.1) / np.exp(x / 0.1).sum() for x in pair] for pair in rows]
        relation = np.mean([(q * np.log(q / p)).sum() for p, q in soft])
    assert float(found) == pytest.approx(0.3 * (cosine + relation), rel=1e-5)


def test_embedding_loss_is_least_at_the_teacher_and_defined_for_one_text() -> None:
    kind, teacher_BE = KINDS["sentence_embedding"], drawn(5, 4)
    settings = Settings(lambda_logit=1.0)
    # lengths do not matter
    assert float(kind.loss(3 * teacher_BE, {"teacher_logits": teacher_BE}, settings)) == pytest.approx(0, abs=1e-6)
    one = {"teacher_logits": teacher_BE[:1]}
    assert float(kind.loss(-teacher_BE[:1], one, settings)) == pytest.approx(2, abs=1e-6)


def test_embeddings_are_scored_by_retrieval() -> None:
    queries, documents = drawn(6, 4), drawn(6, 4, seed=1)
    rows = SimpleNamespace(num_pairs=6)
    found = KINDS["sentence_embedding"].scores(("mrr", "recall_at_1"), torch.cat([queries, documents]), rows)
    a, b = unit(queries), unit(documents)
    ranks = [1 + sum(float(a[i] @ b[j]) > float(a[i] @ b[i]) for j in range(6)) for i in range(6)]
    assert found == {"mrr": pytest.approx(np.mean([1 / r for r in ranks])), "recall_at_1": ranks.count(1) / 6}


def test_the_teachers_features_are_its_embeddings() -> None:
    head = KINDS["sentence_embedding"].fit_head(drawn(7, 3), torch.zeros(7), num_outputs=3, seed=0)
    assert torch.equal(head(drawn(2, 3, seed=2)), drawn(2, 3, seed=2))


# --- language modelling ---

def test_language_modelling_keeps_the_log_likelihood_of_counted_tokens() -> None:
    kind, labels_BT = KINDS["causal_lm"], torch.tensor([[2, -100, 1], [-100, 0, -100]])
    everywhere = drawn(2, 3, 5)
    counted = kind.features(everywhere, {"labels": labels_BT}, "cls")
    assert counted.shape == (3, 5)
    kept = kind.kept(counted, {"labels": labels_BT})
    expected = np.zeros((2, 3))
    for b, t in ((0, 0), (0, 2), (1, 1)):
        expected[b, t] = float(functional.log_softmax(everywhere[b, t], -1)[labels_BT[b, t]])
    np.testing.assert_allclose(kept.squeeze(-1).numpy(), expected, rtol=1e-6)
    # logits of a model of transformers, which has them everywhere
    torch.testing.assert_close(kind.kept(everywhere, {"labels": labels_BT}), kept)
    loss = kind.loss(counted, {"labels": labels_BT}, Settings())
    assert float(loss) == pytest.approx(-expected.sum() / 3, rel=1e-6)


def test_language_modelling_scores() -> None:
    rows = rows_of(torch.tensor([4, -100, 1, 2]))
    rows.num_bytes = 12
    found = KINDS["causal_lm"].scores(
        ("log_likelihood", "perplexity", "bits_per_byte"), torch.tensor([-1.0, 0.0, -2.0, -3.0]), rows
    )
    assert found["log_likelihood"] == pytest.approx(-2.0)
    assert found["perplexity"] == pytest.approx(np.exp(2.0))
    assert found["bits_per_byte"] == pytest.approx(6 / np.log(2) / 12)


def test_a_tied_head_is_the_exported_one() -> None:
    from elm_nni.modeling import ElmConfig, ElmForCausalLM, ElmModel

    torch.manual_seed(0)
    layers = [{"block": "bert", "ffn_size": 8, "num_heads": 2, "head_dim": 4}]
    config = ElmConfig(vocab_size=30, hidden_size=8, embedding_size=6, bottleneck_size=4, layers=layers, is_causal=True)
    body, kind = ElmModel(config).eval(), KINDS["causal_lm"]
    head = kind.new_head(body, 8, 0)
    kind.start_head(head, 0.5)
    nn.init.normal_(head.bias_V)
    # the table is the body's: neither a parameter nor a part of the state of the head
    assert sorted(head.state_dict()) == ["bias_V", "dense.bias", "dense.weight", "norm.bias", "norm.weight"]
    whole = ElmForCausalLM(config).eval()
    whole.elm.load_state_dict(body.state_dict())
    kind.install_head(head, whole)
    ids_BT = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        torch.testing.assert_close(whole(ids_BT).logits, head(body(ids_BT).last_hidden_state))
        body.embeddings.tokens.weight.mul_(2)
        assert not torch.allclose(whole(ids_BT).logits, head(body(ids_BT).last_hidden_state))
    assert whole.lm_head.decoder.weight is whole.elm.embeddings.tokens.weight


@pytest.mark.parametrize(
    ("objective", "name"),
    [("distill", None), ("mlm", "masked_lm"), ("distill+clm", "causal_lm"), ("clm", "causal_lm")],
)
def test_language_modelling_in_an_objective(objective: str, name: str | None) -> None:
    kind = language_kind(objective)
    assert (kind and kind.name) == name


def test_logits_of_an_output() -> None:
    assert logits_of(SimpleNamespace(logits="these")) == "these"
    start_BT, end_BT = drawn(2, 3), drawn(2, 3, seed=1)
    found = logits_of(SimpleNamespace(start_logits=start_BT, end_logits=end_BT))
    assert torch.equal(found[..., 0], start_BT)
    assert torch.equal(found[..., 1], end_BT)


def test_class_numbers_outside_the_names_stop() -> None:
    with pytest.raises(UserError, match=r"must be in 0\.\.1"):
        KINDS["token_classification"].check_labels(torch.tensor([-100, 2]), ["a", "b"])
    with pytest.raises(UserError, match="one class"):
        KINDS["classification"].check_labels(torch.tensor([0]), ["a"])
    KINDS["regression"].check_labels(torch.tensor([7.5]), ["stars"])
    with pytest.raises(UserError, match=r"1 columns of labels, label names \['a', 'b'\]"):
        KINDS["regression"].check_labels(torch.tensor([7.5]), ["a", "b"])
    KINDS["multi_label"].check_labels(torch.tensor([[0, 1]]), ["a", "b"])
    with pytest.raises(UserError, match=r"2 columns"):
        KINDS["multi_label"].check_labels(torch.tensor([[0, 1]]), ["a"])
