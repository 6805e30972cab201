import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from elm_nni.distillation.heads import LinearHead, TeacherClassifier, fit_linear_head, mean_pool, pooled_features
from elm_nni.errors import UserError


def clusters(num_classes, num_rows=300, spread=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_rows,), generator=generator)
    centres = spread * torch.randn(num_classes, 8, generator=generator)
    # features of very different scale and offset, as a teacher's are
    features = (centres[labels] + torch.randn(num_rows, 8, generator=generator)) * torch.logspace(-3, 2, 8) + 5
    return features, labels


@pytest.mark.parametrize("num_classes", [2, 5])
def test_classifies_as_well_as_scikit_learn(num_classes):
    features, labels = clusters(num_classes, 600)
    head = fit_linear_head(features[:300], labels[:300], num_labels=num_classes, seed=0)
    scale, offset = features[:300].std(0), features[:300].mean(0)
    standardised = ((features - offset) / scale).numpy()
    reference = LogisticRegression(max_iter=1000).fit(standardised[:300], labels[:300].numpy())
    expected = reference.score(standardised[300:], labels[300:].numpy())
    assert head.weight_CD.shape == (num_classes, 8)
    accuracy = float((head(features[300:]).argmax(1) == labels[300:]).float().mean())
    assert accuracy > 0.7
    assert accuracy >= expected - 0.02


def test_logits_are_those_of_some_penalty_of_the_grid():
    features, labels = clusters(3)
    head = fit_linear_head(features, labels, num_labels=3, seed=0)
    x = features.double().numpy()
    standardised = (x - x.mean(0)) / x.std(0)
    distances = []
    for penalty in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        reference = LogisticRegression(C=1 / (300 * penalty), max_iter=1000).fit(standardised, labels.numpy())
        difference = head(features).softmax(1).numpy() - reference.predict_proba(standardised)
        distances.append(np.abs(difference).max())
    assert min(distances) < 1e-3
    assert max(distances) > 0.05


def test_two_classes_give_the_probabilities_of_scikit_learn():
    features, labels = clusters(2, spread=0.5)
    head = fit_linear_head(features, labels, num_labels=2, seed=0)
    x = features.double().numpy()
    standardised = (x - x.mean(0)) / x.std(0)
    differences = [
        np.abs(
            head(features).softmax(1).numpy()
            - LogisticRegression(C=1 / (300 * penalty)).fit(standardised, labels.numpy()).predict_proba(standardised)
        ).max()
        for penalty in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    ]
    assert min(differences) < 1e-3


def test_the_penalty_is_chosen():
    generator = torch.Generator().manual_seed(0)
    noise, labels = torch.randn(120, 100, generator=generator), torch.arange(120) % 2
    # nothing to learn: equal scores or better ones go to strong penalties, never to an exact fit of noise
    weights = [fit_linear_head(noise, labels, num_labels=2, seed=seed).weight_CD.norm() for seed in range(5)]
    exact = LogisticRegression(C=1 / (120 * 1e-4), max_iter=1000).fit(noise.numpy(), labels.numpy())
    assert float(torch.stack(weights).median()) < np.linalg.norm(exact.coef_) / 2


@pytest.mark.parametrize("num_labels", [1, 3])
def test_regression_recovers_a_linear_map(num_labels):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 6, generator=generator) * torch.logspace(-2, 1, 6) + 3
    targets = (features @ torch.randn(6, num_labels, generator=generator) - 4).squeeze(-1)
    head = fit_linear_head(features, targets, num_labels=num_labels, kind="regression", seed=0)
    x = features.double().numpy()
    reference = Ridge(alpha=200 * 1e-4).fit((x - x.mean(0)) / x.std(0), targets.numpy())
    expected = reference.predict((x - x.mean(0)) / x.std(0)).reshape(200, num_labels)
    np.testing.assert_allclose(head(features).numpy(), expected, atol=1e-3)


def test_is_seeded():
    features, labels = clusters(3)
    first, second = (fit_linear_head(features, labels, num_labels=3, seed=7) for _ in range(2))
    assert torch.equal(first.weight_CD, second.weight_CD)


def test_a_class_without_rows_is_never_predicted():
    features, labels = clusters(2)
    head = fit_linear_head(features, labels * 2, num_labels=4, seed=0)
    probabilities = head(features).softmax(1)
    assert torch.isfinite(probabilities).all()
    assert set(probabilities.argmax(1).tolist()) == {0, 2}


def test_a_class_with_one_row():
    features, labels = clusters(2)
    labels[0] = 2
    assert fit_linear_head(features, labels, num_labels=3, seed=0).weight_CD.shape == (3, 8)


def test_pooling_leaves_padding_out(build_teacher):
    teacher = build_teacher("bert")
    ids = torch.randint(4, 60, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(7) < torch.tensor([[7], [4], [2]])).long()
    features = pooled_features(teacher, [(ids[:2], mask[:2]), (ids[2:], mask[2:])])
    for row, length in enumerate((7, 4, 2)):
        alone = teacher.features(ids[row : row + 1, :length]).hidden[-1].mean(1)[0]
        torch.testing.assert_close(features[row], alone, rtol=1e-4, atol=1e-5)
    hidden = torch.full((1, 2, 3), float("nan"))
    hidden[:, 0] = 1
    assert torch.equal(mean_pool(hidden, torch.tensor([[1, 0]])), torch.ones(1, 3))
    assert torch.equal(mean_pool(hidden, torch.tensor([[0, 0]])), torch.zeros(1, 3))


def test_a_head_on_minilm_tells_sentiment(minilm, tmp_path):
    good = ["wonderful", "a delight", "brilliant and moving", "great fun", "superb acting", "I loved it", "charming"]
    bad = ["awful", "a bore", "dull and clumsy", "a waste of time", "terrible acting", "I hated it", "tedious"]
    texts = [f"The film: {text}." for pair in zip(good, bad) for text in pair]
    inputs = minilm.tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask, labels = inputs["input_ids"], inputs["attention_mask"], torch.arange(14) % 2
    features = pooled_features(minilm, [(ids[:12], mask[:12])])
    head = fit_linear_head(features, labels[:12], num_labels=2, seed=0)
    head.save(tmp_path / "head.safetensors")
    classifier = TeacherClassifier(minilm, LinearHead.load(tmp_path / "head.safetensors"))
    assert classifier.num_labels == 2
    logits = classifier.logits(ids, mask)
    torch.testing.assert_close(logits[:12], head(features), rtol=1e-4, atol=1e-4)
    assert logits[12:].argmax(1).tolist() == [0, 1]
    shown, again = classifier.features_and_logits(ids, mask)
    assert len(shown.hidden) == 6
    assert torch.equal(again, logits)


def test_bad_input(build_teacher):
    features, labels = clusters(3)
    with pytest.raises(UserError, match="one class"):
        fit_linear_head(features, torch.zeros(300, dtype=torch.long), num_labels=3, seed=0)
    with pytest.raises(UserError, match=r"0\.\.2: must be in 0\.\.1"):
        fit_linear_head(features, labels, num_labels=2, seed=0)
    with pytest.raises(UserError, match="9 rows"):
        fit_linear_head(features[:9], labels[:9], num_labels=3, seed=0)
    with pytest.raises(UserError, match="NaN"):
        fit_linear_head(features, torch.full((300,), float("nan")), num_labels=1, kind="regression", seed=0)
    with pytest.raises(ValueError, match="kind='ranking'"):
        fit_linear_head(features, labels, num_labels=3, kind="ranking", seed=0)
    with pytest.raises(ValueError, match="num_labels=2"):
        fit_linear_head(features, labels.float(), num_labels=2, kind="regression", seed=0)
    with pytest.raises(ValueError, match="299 labels"):
        fit_linear_head(features, labels[1:], num_labels=3, seed=0)
    with pytest.raises(UserError, match="0 rows"):
        pooled_features(build_teacher("bert"), [])
    with pytest.raises(ValueError, match="width 8"):
        TeacherClassifier(build_teacher("bert"), fit_linear_head(features, labels, num_labels=3, seed=0))
