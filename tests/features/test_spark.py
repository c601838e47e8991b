"""Spark gives what `table` gives: one list of cases, run once on a local Spark in an environment of its own."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jvm_cases
import numpy as np
import polars as pl
import pytest

from vitok.features import FeatureSet, Latest, View

from jvm_cases import CASES

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv" / "spark" / "bin" / "python"
