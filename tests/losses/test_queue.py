"""MoCo's loss and queue against worked figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.losses import Queue, enqueued, queue_loss


def unit(rows):
    rows = np.asarray(rows, np.float32)
    return jnp.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


QUERIES = unit([[1, 2, 0], [0, 1, 1]])
KEYS = unit([[1, 1, 1], [0, 1, -1]])
QUEUE = Queue(
    unit([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]), jnp.ones(4), jnp.int32(0)
)
ONES = jnp.ones(2)


@pytest.mark.parametrize(
    ("temperature", "expected"), [(0.2, 3.053676), (0.07, 6.871022)]
)
def test_loss(temperature, expected):
    found = queue_loss(QUERIES, KEYS, QUEUE, 1 / temperature, ONES)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_one_query_alone():
    for row, expected in enumerate((1.690814, 4.416539)):
        weight = jnp.zeros(2).at[row].set(1.0)
        found = queue_loss(QUERIES, KEYS, QUEUE, 5.0, weight)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_no_gradient_reaches_keys_or_queue():
    def loss(keys, of_queue):
        return queue_loss(QUERIES, keys, QUEUE._replace(keys_KxD=of_queue), 5.0, ONES)

    by_keys = jax.grad(loss)(KEYS, QUEUE.keys_KxD)
    assert not by_keys.any()


def test_new_keys_replace_the_oldest_and_go_round():
    queue = QUEUE
    for step in range(3):
        keys = jnp.full((2, 3), step + 2.0)
        queue = jax.jit(enqueued)(queue, keys, jnp.array([1.0, step != 1]))
        assert int(queue.pointer) == (2, 0, 2)[step]
    np.testing.assert_array_equal(queue.keys_KxD[:, 0], [4, 4, 3, 3])
    np.testing.assert_array_equal(queue.valid_K, [1, 1, 1, 0])


def test_a_key_of_a_damaged_film_is_no_negative():
    queue = QUEUE._replace(valid_K=jnp.array([1.0, 0, 1, 1]))
    kept = Queue(QUEUE.keys_KxD[jnp.array([0, 2, 3])], jnp.ones(3), jnp.int32(0))
    np.testing.assert_allclose(
        queue_loss(QUERIES, KEYS, queue, 5.0, ONES),
        queue_loss(QUERIES, KEYS, kept, 5.0, ONES),
        rtol=1e-6,
    )


def test_a_queue_that_batches_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="found 4 keys and a batch of 3"):
        enqueued(QUEUE, jnp.zeros((3, 3)), jnp.ones(3))
