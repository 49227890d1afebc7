"""Published figures stand beside the same question only."""

import math

from medclip_jax.evaluation import page, protocols, published
from medclip_jax.evaluation.rows import Row


def row(protocol, metric, kind):
    return Row(protocol, "mine", metric, 0.5, 10, 0.5, None, kind=kind)


def test_a_figure_stands_beside_its_own_question():
    beside = published.beside(row("linear_probe", "auroc_1%", "rsna"))
    found = {figure.system: figure.value for figure in beside}
    assert found["ConVIRT"] == 0.907 and found["GLoRIA"] == 0.861
    assert not published.beside(row("linear_probe", "auroc_1%", "nih_cxr14"))
    assert not published.beside(row("linear_probe", "accuracy_1%", "rsna"))
    # MedCLIP's retrieval is of films and sentences of two sets: any kind.
    assert published.beside(row("retrieval_image_to_text", "precision_at_5", "csv"))


def test_every_figure_names_a_protocol_and_a_source():
    assert len(published.FIGURES) > 80
    for figure in published.FIGURES:
        assert figure.of.split("/")[0] in protocols.PROTOCOLS, figure
        assert figure.source and math.isfinite(figure.value)
        assert 0 < figure.value < (2 if figure.metric == "cnr" else 1)
    keys = [(f.of, f.kind, f.metric, f.system, f.source) for f in published.FIGURES]
    assert len(set(keys)) == len(keys)


def test_the_leaderboard_takes_all_labels_where_papers_have_every_share():
    rows = [row("linear_probe", f"auroc_{share}%", "rsna") for share in (1, 10, 100)]
    board = page._board(rows)
    assert "AUROC 100%" in board and "AUROC 1%" not in board
    assert "ConVIRT 0.921" in board
    # A figure that papers have goes before one that they have not.
    board = page._board([*rows, row("linear_probe", "accuracy_100%", "rsna")])
    assert "AUROC 100%" in board and "accuracy" not in board
