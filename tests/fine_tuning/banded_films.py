"""Films with a bright band where they are positive."""

import numpy as np
import planted_tasks as toy

from data_pipelines.annotations import Task
from medclip_jax.evaluation.features import Network

BINARY = Task("binary", ("Pneumonia",))


def network(run, variables=None, name="trained"):
    return Network(name, None, variables or run.variables)


def binary_films(count=180, seed=0, **more):
    codes = np.random.default_rng(seed).integers(0, 2, (count, 1))
    return toy.films(codes, BINARY, spread=20, name="rsna_target", **more)
