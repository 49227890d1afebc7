"""Runs the protocols on one data set: embeds once, then measures on host arrays."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from data_pipelines.findings import EVAL_FIVE
from medclip_jax.errors import UserError
from medclip_jax.evaluation import five_class, metrics, prompts, retrieval, zero_shot
from medclip_jax.evaluation.rows import PROTOCOLS
from medclip_jax.evaluation.sets import (
    Films,
    FiveResult,
    Networks,
    Options,
    Result,
    Sentences,
)
from medclip_jax.evaluation.zero_shot import Logits
from medclip_jax.methods.interface import ImageEmbedding, TextEmbedding


def measure(
    films: Films,
    sentences: Sentences | None,
    pair_texts: Sentences | None,
    networks: Networks,
    options: Options,
) -> Result:
    """Runs the asked protocols on one data set.

    Args:
      films: all films of the split.
      sentences: of the same split, with their own labels; None without reports.
      pair_texts: what a report is compared by: its sentences, whose logits are
        averaged, or itself as one text; None without reports.
      networks: trained and untrained.
      options: how.

    Returns:
      Rows, and what was not run and why.
    """
    run = _Run(films, networks, options)
    asked = set(options.protocols)
    if asked & {"zero_shot_five"}:
        run.five_class()
    if "zero_shot_findings" in asked:
        run.findings()
    by_class = [p for p in PROTOCOLS[2:4] if p in asked]
    if by_class:
        run.class_retrieval(by_class, sentences)
    if "retrieval_exact" in asked:
        run.exact_retrieval(pair_texts)
    return run.result


NO_TEXT = "this split has no report text"


class _Run:
    """One data set under way: its films are embedded once for all protocols."""

    def __init__(self, films: Films, networks: Networks, options: Options):
        self.films, self.networks, self.options = films, networks, options
        self.result = Result(films.name)
        usable = np.ones(len(films.ids), bool)
        if options.frontal:
            usable = five_class.frontal(films.views)
        self.five, self.why = self._choose_five(usable)
        self.result.chosen = self.five
        wide = [] if self.five is None else [self.five.indices]
        if {"zero_shot_findings", "retrieval_exact"} & set(options.protocols):
            wide.append(self._sample(np.flatnonzero(usable)))
        chosen = np.concatenate(wide) if wide else np.zeros(0, np.int64)
        self.used = np.unique(chosen)
        self.result.films = len(self.used)
        self.result.patients = len(set(films.patients[self.used]))
        if len(self.used):
            self.images = self._pair(
                lambda variables, label: networks.embedder.films(
                    variables, films.read(self.used), f"{films.name}: films, {label}"
                )
            )

    def _choose_five(
        self, usable: np.ndarray
    ) -> tuple[five_class.FiveClassSet | None, str]:
        options = self.options
        labels = self.films.labels_Nx14
        classes = five_class.class_of(labels, options.rule, options.uncertain)
        try:
            chosen = five_class.choose(
                np.where(usable, classes, -1),
                self.films.ids,
                per_class=options.per_class,
                minimum=options.minimum,
                seed=options.seed,
            )
        except UserError as error:
            return None, str(error)
        return chosen, ""

    def _sample(self, usable: np.ndarray) -> np.ndarray:
        by_id = usable[np.argsort(self.films.ids[usable], kind="stable")]
        rng = np.random.default_rng([self.options.seed, 14])
        return rng.permutation(by_id)[: self.options.max_films]

    def _pair(self, embed: Callable) -> tuple:
        networks = self.networks
        return (
            embed(networks.trained, "trained"),
            embed(networks.untrained, "untrained"),
        )

    def _texts(self, texts: Sequence[str], what: str) -> tuple:
        return self._pair(
            lambda variables, label: self.networks.embedder.texts(
                variables, texts, f"{self.films.name}: {what}, {label}"
            )
        )

    def _logits(self, films: np.ndarray, texts: tuple[TextEmbedding, ...]) -> Logits:
        """Logits of films, given as positions in the data set, with embedded texts."""
        rows = np.searchsorted(self.used, films)
        networks = self.networks
        return Logits(
            *(
                networks.embedder.logits(variables, _rows(images, rows), of)
                for variables, images, of in zip(
                    (networks.trained, networks.untrained), self.images, texts
                )
            )
        )

    def five_class(self) -> None:
        if self.five is None:
            self.result.skipped["zero_shot_five"] = self.why
            return
        options, five = self.options, prompts.five_class_prompts()
        texts = [text for of in five.values() for text in of]
        logits = self._logits(self.five.indices, self._texts(texts, "prompts"))
        settings = {
            "draws": options.draws,
            "per_class": options.prompts_per_class,
            "seed": options.seed,
        }
        self.result.rows += zero_shot.five_class_rows(
            logits,
            five,
            self.five.classes,
            self.films.patients[self.five.indices],
            self.films.name,
            pooling=options.pooling,
            **settings,
        )
        drawn = [
            zero_shot.drawn_scores(of, five, options.pooling, **settings)
            for of in (logits.trained, logits.untrained)
        ]
        self.result.five = FiveResult(
            drawn[0].mean(axis=0),
            *(_recall(scores, self.five.classes) for scores in drawn),
        )
        rows = np.searchsorted(self.used, self.five.indices)
        for name, images in zip(("trained", "untrained"), self.images):
            joint = (
                images.joint_BxD if images.joint_BxD is not None else images.trunk_BxF
            )
            self.result.embeddings[name] = joint[rows]

    def findings(self) -> None:
        fourteen = prompts.fourteen_prompts()
        texts = [text for of in fourteen.values() for text in of]
        logits = self._logits(self.used, self._texts(texts, "prompts of 14"))
        views = self.films.views[self.used]
        groups = {self.films.name: np.ones(len(self.used), bool)}
        if self.options.by_view:
            groups |= {f"{self.films.name} {v}": views == v for v in np.unique(views)}
        for name, rows in groups.items():
            measured, left_out = zero_shot.findings_rows(
                Logits(logits.trained[rows], logits.untrained[rows]),
                fourteen,
                self.films.labels_Nx14[self.used[rows]],
                self.films.patients[self.used[rows]],
                name,
                not_given=self.options.not_given,
                seed=self.options.seed,
            )
            self.result.rows += measured
            if left_out:
                counts = "; ".join(f"{of} {why}" for of, why in left_out.items())
                self.result.skipped[f"some of zero_shot_findings on {name}"] = (
                    f"at least {zero_shot.MINIMUM_OF_EACH} films of each kind are needed, "
                    f"found {counts}"
                )

    def class_retrieval(
        self, protocols: Sequence[str], sentences: Sentences | None
    ) -> None:
        if sentences is None:
            self.result.skipped |= dict.fromkeys(protocols, NO_TEXT)
            return
        if self.five is None:
            self.result.skipped |= dict.fromkeys(protocols, self.why)
            return
        try:
            chosen = _choose_sentences(sentences, self.options)
        except UserError as error:
            self.result.skipped |= dict.fromkeys(protocols, str(error))
            return
        # Equal similarities are ranked by index; in the order of the reports that
        # would favour nobody's class.
        texts = [sentences.texts[i] for i in chosen.indices]
        task = retrieval.ClassRetrieval(
            self._logits(self.five.indices, self._texts(texts, "sentences")),
            self.five.classes,
            chosen.classes,
            self.films.patients[self.five.indices],
            sentences.patients[chosen.indices],
        )
        self.result.rows += retrieval.class_rows(
            task, self.films.name, protocols, seed=self.options.seed
        )
        rng = np.random.default_rng([self.options.seed, 5])
        for c, name in enumerate(EVAL_FIVE):
            query = int(rng.choice(np.flatnonzero(chosen.classes == c)))
            best = np.argsort(-task.logits.trained[:, query], kind="stable")[:5]
            self.result.found[name] = int(chosen.indices[query]), best

    def exact_retrieval(self, texts: Sentences | None) -> None:
        if texts is None:
            self.result.skipped["retrieval_exact"] = NO_TEXT
            return
        films, reports, owner = _pairs(self.films, self.used, texts)
        if len(reports) < 2:
            self.result.skipped["retrieval_exact"] = (
                f"{len(reports)} distinct reports belong to a film; 2 are needed"
            )
            return
        positions = np.concatenate(reports)
        first, group = retrieval.first_of_each([texts.texts[i] for i in positions])
        embedded = self._texts([texts.texts[positions[i]] for i in first], "reports")
        logits = self._logits(films, embedded)
        parts = np.split(group, np.cumsum([len(report) for report in reports])[:-1])
        of_reports = [
            np.stack([of[:, part].mean(axis=1) for part in parts], axis=1)
            for of in (logits.trained, logits.untrained)
        ]
        self.result.rows += retrieval.exact_rows(
            Logits(*of_reports),
            owner,
            self.films.patients[films],
            self.films.name,
            seed=self.options.seed,
        )


def _rows(embedding: ImageEmbedding, rows: np.ndarray) -> ImageEmbedding:
    return jax.tree.map(lambda leaf: leaf[rows], embedding)


def _recall(scores_DxNxC: np.ndarray, classes: np.ndarray) -> list[float]:
    count = scores_DxNxC.shape[2]
    each = [
        metrics.classification(classes, scores.argmax(1), count)["recall_by_class"]
        for scores in scores_DxNxC
    ]
    return [float(value) for value in np.mean(each, axis=0)]


def _choose_sentences(
    sentences: Sentences, options: Options
) -> five_class.FiveClassSet:
    """Distinct sentences with exactly one of the five positive, balanced."""
    first, _ = retrieval.first_of_each(sentences.texts)
    classes = five_class.class_of(sentences.labels_Mx14[first])
    chosen = five_class.choose(
        classes,
        [prompts.normalise(sentences.texts[i]) for i in first],
        per_class=options.per_class,
        minimum=2,
        seed=options.seed,
        what="sentences",
    )
    return five_class.FiveClassSet(
        first[chosen.indices], chosen.classes, chosen.eligible
    )


def _pairs(
    films: Films, used: np.ndarray, texts: Sentences
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Films that have a report; the texts of each distinct report; film to report."""
    of_study: dict[str, list[int]] = {}
    for position, study in enumerate(texts.studies):
        of_study.setdefault(str(study), []).append(position)
    kept: list[int] = []
    reports: list[np.ndarray] = []
    owner: list[int] = []
    known: dict[tuple[str, ...], int] = {}
    for film in used:
        positions = of_study.get(str(films.studies[film]))
        if not positions:
            continue
        words = tuple(prompts.normalise(texts.texts[i]) for i in positions)
        if words not in known:
            known[words] = len(reports)
            reports.append(np.asarray(positions))
        kept.append(film)
        owner.append(known[words])
    return np.asarray(kept, int), reports, np.asarray(owner, int)
