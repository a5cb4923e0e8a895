"""Packaging of tfrobust. Lower bounds are the oldest releases the tests were run against."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = ["\'](.+)["\']', (HERE / "tfrobust" / "__init__.py").read_text(), re.MULTILINE
).group(1)

setup(
    name="tfrobust",
    version=VERSION,
    description="Robust and small image classifiers with Keras 3 and TensorFlow.",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["tfrobust", "tfrobust.*"]),
    py_modules=["tfrobust_cli"],
    package_data={"tfrobust": ["templates/*"]},
    python_requires=">=3.11",
    install_requires=[
        "tensorflow>=2.21",
        "keras>=3.15",
        "numpy>=2.4",
        "tensorflow-probability>=0.25",
        "tensorflow-model-optimization>=0.8.1",
        # tensorflow-probability and tensorflow-model-optimization import it; our code never does.
        "tf-keras>=2.21",
        "keras-tuner>=1.4.8",
        "cleverhans>=4.0",
        "scikit-learn>=1.9",
        "scipy>=1.17",
        "rich>=15.0",
        "matplotlib>=3.11",
        "jinja2>=3.1.6",
    ],
    extras_require={
        "test": [
            "pytest>=9.0",
            "pytest-xdist>=3.8",
            "hypothesis>=6.170",
            "ruff>=0.17",
            "tensorboard>=2.21",
        ],
        "peers": ["foolbox>=3.3.4", "adversarial-robustness-toolbox>=1.20"],
        # torchattacks asks for requests 2.25: best installed where nothing newer is needed.
        "torch": ["torch>=2.13", "torchattacks>=3.5.1"],
        "litert": ["ai-edge-litert>=2.3"],
    },
    entry_points={"console_scripts": ["tfrobust=tfrobust_cli:main"]},
)
