import pytest

from data_pipelines.reports.sentences import is_notification, split_sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "A 2.5 cm nodule. Measures 1.2 x 3.4 cm. Stable.",
            ["A 2.5 cm nodule.", "Measures 1.2 x 3.4 cm.", "Stable."],
        ),
        (
            "1. Left effusion. 2. No edema.\n 3.  Clear lungs",
            ["Left effusion.", "No edema.", "Clear lungs"],
        ),
        (
            "Seen by Dr. ___ at 5 a.m. on ___. ET tube 3 cm. above the carina.",
            ["Seen by Dr. ___ at 5 a.m. on ___.", "ET tube 3 cm. above the carina."],
        ),
        ("Placed at 6 p.m. The tip is low.", ["Placed at 6 p.m.", "The tip is low."]),
        ("Atelectasis vs. pneumonia.", ["Atelectasis vs. pneumonia."]),
        ("See film No. 3 of rib No. ___.", ["See film No. 3 of rib No. ___."]),
        ("Effusion? No. Clear.", ["Effusion?", "No.", "Clear."]),
        ("no effusion. no edema.", ["no effusion.", "no edema."]),
        ("Small effusion.Heart is big.", ["Small effusion.", "Heart is big."]),
        ("There is a\n small effusion.", ["There is a small effusion."]),
        ("Clear lungs\n \n No effusion", ["Clear lungs", "No effusion"]),
        ("- No edema\n - Clear", ["No edema", "Clear"]),
        ("Patient of ________ age.", ["Patient of ___ age."]),
        ("Level of T12. No change.", ["Level of T12.", "No change."]),
        ("___.  1. \n 2.", []),
        ("", []),
    ],
)
def test_split_sentences(text, expected):
    assert split_sentences(text) == expected


def test_notifications_are_known():
    assert is_notification("Findings were discussed with Dr. ___ at 3 p.m.")
    assert is_notification("Dr. ___ was paged.")
    assert not is_notification("Small effusion, as on the prior film.")
