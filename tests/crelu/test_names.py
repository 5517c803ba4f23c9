"""The names that the documents give in backticks are there."""

import functools
import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"`(crelu|recovery|operators)((?:\.[A-Za-z_]\w*)+)[^`\n]*`")


def test_names_in_backticks_resolve():
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("docs/shang2016.md", "README.md")]
    named = {found.groups() for text in texts for found in NAME.finditer(text)}
    assert ("crelu", ".reconstruct") in named
    for package, path in sorted(named):
        functools.reduce(getattr, path[1:].split("."), importlib.import_module(f"cnninv_jax.{package}"))
