"""The Python blocks of the documentation print what the page says."""

from __future__ import annotations

import io
import re
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parent.parent / "docs"
BLOCKS = [
    pytest.param(code, id=f"{page}-{index}")
    for page in ("defects", "findings", "graph_mode", "observers", "onnx", "torch-defects")
    for index, code in enumerate(
        re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)
    )
]


def test_the_pages_have_blocks() -> None:
    assert len(BLOCKS) >= 8


@pytest.mark.parametrize("code", BLOCKS)
def test_a_block_prints_what_its_last_comment_says(code: str) -> None:
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
