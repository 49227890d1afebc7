"""The five-class rule on written-out label vectors."""

import numpy as np
import pytest

from data_pipelines.findings import EVAL_FIVE, FINDINGS
from medclip_jax.errors import UserError
from medclip_jax.evaluation import five_class


def label(**codes: int) -> np.ndarray:
    """A label vector; what is not named was not given."""
    vector = np.full(14, -2, np.int8)
    for name, code in codes.items():
        vector[FINDINGS.index(name.replace("_", " "))] = code
    return vector


@pytest.mark.parametrize(
    ("codes", "loose", "strict", "medclip"),
    [
        ({"Edema": 1}, 3, 3, 3),
        ({"Edema": 1, "Atelectasis": 0}, 3, 3, 3),
        ({"Edema": 1, "Atelectasis": 1}, -1, -1, -1),
        ({"Edema": 1, "Atelectasis": -1}, -1, -1, 3),
        ({"Edema": 1, "Support_Devices": 1}, 3, -1, -1),
        ({"Edema": 1, "Lung_Opacity": 1}, 3, -1, -1),
        ({"Edema": 1, "Pneumonia": -1}, 3, -1, 3),
        ({"Edema": 1, "No_Finding": 1}, 3, 3, 3),
        ({"Edema": -1}, -1, -1, -1),
        ({"Fracture": 1}, -1, -1, -1),
        ({"Pleural_Effusion": 1}, 4, 4, 4),
    ],
)
def test_rules(codes, loose, strict, medclip):
    vector = label(**codes)[None]
    assert five_class.class_of(vector)[0] == loose
    assert five_class.class_of(vector, "chexpert_5x200")[0] == strict
    assert five_class.class_of(vector, "chexpert_5x200", "zero")[0] == medclip


def test_the_eight_other_findings():
    names = {FINDINGS[column] for column in five_class.OTHER_EIGHT}
    assert names == {
        "Enlarged Cardiomediastinum",
        "Lung Lesion",
        "Lung Opacity",
        "Pneumonia",
        "Pneumothorax",
        "Pleural Other",
        "Fracture",
        "Support Devices",
    }


def test_unknown_options_are_user_errors():
    with pytest.raises(UserError, match="chexpert_5x200"):
        five_class.class_of(label(Edema=1)[None], "strict")
    with pytest.raises(UserError, match="disqualify"):
        five_class.class_of(label(Edema=1)[None], "loose", "keep")


def test_frontal_keeps_unknown_views():
    views = ["AP", "PA", "LATERAL", "OTHER", "UNKNOWN"]
    np.testing.assert_array_equal(
        five_class.frontal(views), [True, True, False, False, True]
    )


def test_choose_is_balanced_seeded_and_independent_of_order():
    rng = np.random.default_rng(0)
    classes = rng.integers(-1, 5, 600)
    ids = np.array([f"film{i:04d}" for i in range(600)])
    chosen = five_class.choose(classes, ids, per_class=30, seed=7)
    assert np.bincount(chosen.classes).tolist() == [30] * 5
    assert len(chosen) == 150 and len(set(chosen.indices)) == 150
    np.testing.assert_array_equal(classes[chosen.indices], chosen.classes)
    shuffled = rng.permutation(600)
    again = five_class.choose(classes[shuffled], ids[shuffled], per_class=30, seed=7)
    assert set(ids[shuffled][again.indices]) == set(ids[chosen.indices])
    other = five_class.choose(classes, ids, per_class=30, seed=8)
    assert set(ids[other.indices]) != set(ids[chosen.indices])


def test_choose_balances_to_the_smallest_class_or_not():
    classes = np.repeat(np.arange(5), [3, 9, 9, 9, 9])
    ids = [str(i) for i in range(39)]
    balanced = five_class.choose(classes, ids, per_class=5)
    assert np.bincount(balanced.classes).tolist() == [3] * 5
    free = five_class.choose(classes, ids, per_class=5, balanced=False)
    assert np.bincount(free.classes).tolist() == [3, 5, 5, 5, 5]
    assert free.eligible == dict(zip(EVAL_FIVE, [3, 9, 9, 9, 9], strict=True))


def test_too_few_names_every_class():
    classes = np.repeat(np.arange(5), [3, 9, 9, 0, 9])
    with pytest.raises(UserError, match=r"Atelectasis 3, .*Edema 0"):
        five_class.choose(classes, [str(i) for i in range(30)], minimum=2)
    with pytest.raises(UserError, match="at most 1 films a class"):
        five_class.choose(classes, [str(i) for i in range(30)], per_class=1, minimum=2)
