"""Fine-tunes a method's text tower to say what the first sentence makes of the second.

The two sentences are one text, "[CLS] premise [SEP] hypothesis [SEP]", whose vector, as
the method pools and projects it, a linear layer turns into three logits. All of the
text tower is trained with it. Reached through `embed_texts` alone, so it is inference's
forward pass: there is no dropout, and no token types tell the sentences apart.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from medclip_jax.evaluation.features import Network
from medclip_jax.methods.interface import Variables

BATCH, EPOCHS, LEAST_STEPS = 32, 3, 400
WARM_UP = 0.1
RATES = (2e-5, 2e-4)
"""Learning rates tried; a tower that was trained from nothing needs the higher one."""
MOST_SECONDS = 1800.0
"""Longer than this for one network is not begun."""
TIMED = range(10, 30)
"""Steps by which that is judged: those before compile and warm up."""

Texts = Mapping[str, np.ndarray]


class TooSlow(Exception):
    """Fine-tuning would take longer than MOST_SECONDS; says how long."""


@dataclass(frozen=True)
class Labelled:
    """Joined pairs and their classes, int [N], 0 to 2."""

    texts: Texts
    classes: np.ndarray


def join(first: Texts, second: Texts) -> dict[str, np.ndarray]:
    """One text of two, of the same fixed length.

    Args:
      first, second: `ids_BxT`, `mask_BxT` and perhaps `word_ids_BxT` of texts with a
        special token before and after.

    Returns:
      The same arrays of "[CLS] first [SEP] second [SEP]". What is too long loses
      words from the end of the longer sentence.
    """
    length = first["ids_BxT"].shape[1]
    made = {name: np.array(values) for name, values in first.items()}
    lengths = [np.asarray(part["mask_BxT"]).sum(axis=1) for part in (first, second)]
    for row, (a, b) in enumerate(zip(*lengths)):
        kept_a, kept_b = int(a), int(b)
        while kept_a + kept_b - 1 > length:
            if kept_a >= kept_b:
                kept_a -= 1
            else:
                kept_b -= 1
        end = kept_a + kept_b - 1
        for name, values in made.items():
            # Of a sentence that was cut the last special token stays.
            head = np.r_[values[row, : kept_a - 1], values[row, a - 1]]
            other = second[name][row]
            tail = np.r_[other[1 : kept_b - 1], other[b - 1]]
            if name == "word_ids_BxT":
                tail = np.where(tail < 0, tail, tail + head.max() + 1)
            values[row, :end] = np.r_[head, tail]
    return made


def join_pairs(network: Network, rows: Sequence[Mapping[str, Any]]) -> Texts:
    """The joined texts of rows with `sentence1` and `sentence2`."""
    first, second = (
        network.token_ids([row[name] for row in rows])
        for name in ("sentence1", "sentence2")
    )
    return join(first, second)


def fine_tune(
    network: Network,
    training: Labelled,
    choosing: Labelled,
    judged: Texts,
    runs: int,
    seed: int,
) -> tuple[np.ndarray, float]:
    """Fine-tunes and predicts several times.

    Args:
      network: its variables are the start, and are not changed.
      training: pairs to fit on.
      choosing: pairs by whose accuracy the learning rate is chosen.
      judged: joined texts.
      runs: how many; they differ in the layer's start and in the order of pairs.
      seed: of all of that.

    Returns:
      Predicted classes int [runs, N], and the learning rate.

    Raises:
      TooSlow: see MOST_SECONDS.
    """
    tuner = _Tuner(network, len(RATES) + runs - 1)
    tried = []
    for rate in RATES:
        tuned = tuner.run(training, rate, [seed, 0])
        told = tuner.predict(tuned, choosing.texts)
        tried.append((float(np.mean(told == choosing.classes)), rate, tuned))
    _, rate, first = max(tried, key=lambda of: of[0])
    made = [tuner.predict(first, judged)]
    for number in range(1, runs):
        tuned = tuner.run(training, rate, [seed, number])
        made.append(tuner.predict(tuned, judged))
    return np.array(made), rate


class _Tuner:
    """The compiled step and forward pass of one network.

    Args:
      network: its variables are the start.
      planned: how many runs there will be, for progress and for MOST_SECONDS.
    """

    def __init__(self, network: Network, planned: int):
        self._network, self._planned, self._begun = network, planned, 0
        method = network.method
        rest = {name: v for name, v in network.variables.items() if name != "params"}
        self._optimizer = optax.chain(
            optax.clip_by_global_norm(1.0), optax.scale_by_adam()
        )

        def logits(tuned: Variables, texts: Mapping[str, Any]) -> jax.Array:
            tower = {**rest, "params": tuned["params"]}
            joint_BxD = method.embed_texts(tower, texts).joint_BxD
            scaled_BxD = joint_BxD * joint_BxD.shape[1] ** 0.5  # entries of about one
            return scaled_BxD @ tuned["kernel"] + tuned["bias"]

        def loss(tuned, texts, classes_B):
            return optax.softmax_cross_entropy_with_integer_labels(
                logits(tuned, texts), classes_B
            ).mean()

        def step(tuned, state, texts, classes_B, rate):
            gradient = jax.grad(loss)(tuned, texts, classes_B)
            updates, state = self._optimizer.update(gradient, state, tuned)
            updates = jax.tree.map(lambda update: -rate * update, updates)
            return optax.apply_updates(tuned, updates), state

        self._logits, self._step = jax.jit(logits), jax.jit(step)

    def run(self, training: Labelled, rate: float, seed: list[int]) -> Variables:
        """Trains once.

        Raises:
          TooSlow: all the runs would take too long.
        """
        count = len(training.classes)
        steps = max(EPOCHS * -(-count // BATCH), LEAST_STEPS)
        rng = np.random.default_rng([*seed, 17])
        # Whole passes, one behind the other, each in an order of its own.
        passes = [rng.permutation(count) for _ in range(-(-steps * BATCH // count))]
        order = np.concatenate(passes)
        rates = optax.warmup_cosine_decay_schedule(
            0.0, rate, max(1, int(WARM_UP * steps)), steps
        )
        tuned = self._start(training.texts, rng)
        state = jax.jit(self._optimizer.init)(tuned)
        self._begun += 1
        done = f"run {self._begun} of {self._planned}"
        label = f"sentence pairs, {self._network.name}: fine-tuning, {done}"
        for number in tqdm(range(steps), label, mininterval=2):
            if self._begun == 1 and number == TIMED.start:
                jax.block_until_ready(tuned)
                started = time.perf_counter()
            elif self._begun == 1 and number == TIMED.stop:
                jax.block_until_ready(tuned)
                a_step = (time.perf_counter() - started) / len(TIMED)
                _check(a_step * steps * self._planned, self._planned, steps)
            rows = order[number * BATCH : (number + 1) * BATCH]
            texts, classes_B = _rows(training.texts, rows), training.classes[rows]
            tuned, state = self._step(tuned, state, texts, classes_B, rates(number))
        return tuned

    def _start(self, texts: Texts, rng: np.random.Generator) -> Variables:
        method, variables = self._network.method, self._network.variables
        one = _rows(texts, np.zeros(1, int))
        joint_1xD = jax.eval_shape(method.embed_texts, variables, one).joint_BxD
        kernel = 0.02 * rng.normal(size=(joint_1xD.shape[1], 3))
        return {
            "params": variables["params"],
            "kernel": jnp.asarray(kernel, jnp.float32),
            "bias": jnp.zeros(3),
        }

    def predict(self, tuned: Variables, texts: Texts) -> np.ndarray:
        """int [N], the class of each joined text."""
        count, made = len(texts["ids_BxT"]), []
        for start in range(0, count, 4 * BATCH):
            # The last part is filled up with its last row: one shape is compiled.
            rows = np.minimum(np.arange(start, start + 4 * BATCH), count - 1)
            made.append(np.asarray(self._logits(tuned, _rows(texts, rows))))
        return np.concatenate(made)[:count].argmax(axis=1)


def _check(seconds: float, runs: int, steps: int) -> None:
    if seconds > MOST_SECONDS:
        raise TooSlow(
            f"{runs} runs of {steps} steps would take about {seconds / 60:.0f} minutes "
            f"a network on this machine, more than {MOST_SECONDS / 60:.0f}"
        )


def _rows(texts: Texts, rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values[rows] for name, values in texts.items()}
