"""A tokenizer of the toy datasets, made once a file."""

import pytest
from readers import BASE, DATA

from medclip_jax.inputs import reader


@pytest.fixture(scope="module")
def tokenizer():
    return reader.make_tokenizer(DATA, BASE)
