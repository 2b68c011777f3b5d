"""The repros of docs/findings.md print what the page says."""

from __future__ import annotations

import io
import re
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).parent.parent / "docs" / "findings.md").read_text()
REPROS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_has_repros() -> None:
    assert len(REPROS) >= 3


@pytest.mark.parametrize("code", REPROS, ids=range(len(REPROS)))
def test_a_repro_prints_what_its_last_comment_says(code: str) -> None:
    engine, threads = torch.backends.quantized.engine, torch.get_num_threads()
    printed = io.StringIO()
    try:
        torch.set_num_threads(1)
        with redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(code, {})
    finally:
        torch.backends.quantized.engine = engine
        torch.set_num_threads(threads)
    said = code.strip().splitlines()[-1].partition("#")[2].strip()
    assert printed.getvalue().strip() == said
