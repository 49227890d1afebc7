"""The pure functions of the views, on small arrays written out."""

import numpy as np
import pytest

from medclip_jax.inputs import draw, views

# Studies: 0 two images, a report; 1 an image, no report; 2 a report, no image;
# 3 an image, a report without sentences; 4 an image, a report.
IMAGE_STUDY = np.array([0, 0, 1, 3, 4])
STUDY_REPORT = np.array([0, -1, 1, 2, 3])
REPORT_COUNT = np.array([3, 2, 0, 1])
SENTENCE_STUDY = np.array([0, 0, 0, 2, 2, 4])
SHARE = np.array([0.1, 0.2, 0.3, 0.4, 0.9])


def joined(fraction=1.0):
    return views.joined_studies(
        IMAGE_STUDY, STUDY_REPORT, REPORT_COUNT, SHARE, fraction
    )


def codes(*positive_sets, base=0):
    labels = np.full((len(positive_sets), 14), base, np.int8)
    for row, positive in enumerate(positive_sets):
        labels[row, list(positive)] = 1
    return labels


def test_joined_studies_have_both_and_lie_below_the_fraction():
    np.testing.assert_array_equal(joined(), [1, 0, 0, 0, 1])
    np.testing.assert_array_equal(joined(0.5), [1, 0, 0, 0, 0])
    assert not joined(0.0).any()


def test_pairs_by_image():
    rows = views.pairs_by_image(IMAGE_STUDY, STUDY_REPORT, joined())
    np.testing.assert_array_equal(rows, [[0, 0], [1, 0], [4, 3]])


def test_pairs_by_study_lists_each_study_s_images():
    shuffled = np.array([4, 1, 0, 3, 0])
    rows, order = views.pairs_by_study(shuffled, STUDY_REPORT, joined())
    np.testing.assert_array_equal(rows[:, 1:], [[2, 0], [1, 3]])
    found = [sorted(order[first : first + n].tolist()) for first, n, _ in rows]
    assert found == [[2, 4], [0]]


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.0])
def test_unpaired_streams_part_all_that_is_labelled(fraction):
    image_labels = codes({1}, {2}, {3}, {4}, {5})
    image_labels[2] = -2  # nothing known of image 2
    sentence_labels = codes(*[{1}] * 6)
    sentence_labels[4] = -2
    streams = views.unpaired_streams(
        IMAGE_STUDY, image_labels, SENTENCE_STUDY, sentence_labels, joined(fraction)
    )
    expected = {
        1.0: ([0, 1, 4], [3], [0, 1, 2, 5], [3]),
        0.5: ([0, 1], [3, 4], [0, 1, 2], [3, 5]),
        0.0: ([], [0, 1, 3, 4], [], [0, 1, 2, 3, 5]),
    }[fraction]
    assert tuple(part.tolist() for part in streams[:4]) == expected
    assert (streams.unlabelled_images, streams.unlabelled_texts) == (1, 1)


def test_prompt_table_takes_up_to_n_of_each_finding():
    rng = np.random.default_rng(0)
    labels = (rng.random((500, 14)) < 0.05).astype(np.int8)
    labels[:3, 13] = 1
    labels[3:, 13] = 0
    labels[labels.sum(axis=1) == 0, 0] = -1  # uncertain is not positive
    rows = views.prompt_table(labels, 10, seed=1, epoch=0)
    assert len(np.unique(rows)) == len(rows) and (np.diff(rows) > 0).all()
    assert {0, 1, 2} <= set(rows.tolist())  # fewer than ten: all of them
    assert ((labels[rows] == 1).sum(axis=0)[:13] >= 10).all()
    assert len(rows) <= 13 * 10 + 3
    assert (labels[rows] == 1).any(axis=1).all()
    again = views.prompt_table(labels, 10, seed=1, epoch=0)
    np.testing.assert_array_equal(rows, again)
    for other in ({"seed": 1, "epoch": 1}, {"seed": 2, "epoch": 0}):
        assert rows.tolist() != views.prompt_table(labels, 10, **other).tolist()


def test_prompt_table_takes_no_more_than_n():
    labels = np.repeat(codes(*[{f} for f in range(14)]), 30, axis=0)
    rows = views.prompt_table(labels, 10, seed=1, epoch=0)
    np.testing.assert_array_equal(labels[rows].sum(axis=0), np.full(14, 10))


def prompt_counts(image_labels, table, n=3000):
    bits = draw.bits(0, "prompt", np.arange(n))
    return np.bincount(
        [views.prompt_for_image(image_labels, table, b) + 1 for b in bits],
        minlength=len(table) + 1,
    )


def test_prompt_shares_a_positive_finding_no_finding_aside():
    table = codes({8}, {8, 10}, {0}, {0, 13}, {5}, {2})
    image = codes({0, 8, 10})[0]
    image[5] = -1  # uncertain counts as zero
    counts = prompt_counts(image, table)
    assert set(np.flatnonzero(counts) - 1) == {0, 1}
    assert abs(counts[1] - counts[2]) < 250  # uniform, not by overlap


def test_prompt_is_no_finding_where_nothing_is_shared():
    table = codes({8}, {0}, {0, 13}, {5})
    for image in (codes({0})[0], codes(set())[0], codes({11})[0]):
        assert set(np.flatnonzero(prompt_counts(image, table, 200)) - 1) == {1, 2}


def test_prompt_is_absent_when_there_is_none():
    assert views.prompt_for_image(codes({3})[0], codes({8}), np.uint64(5)) == -1


def test_texts_without_any_label_become_no_finding():
    labels = codes({8}, set(), {0}, base=-2)
    out = views.no_finding_where_unknown(labels)
    np.testing.assert_array_equal(out[[0, 2]], labels[[0, 2]])
    np.testing.assert_array_equal(out[1], [1] + [0] * 13)
