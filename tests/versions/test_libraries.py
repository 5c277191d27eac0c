"""A canary of numbers: which library moved them, where the numbers of runs differ after an upgrade.

Each row is a short computation by one library on top of those before it. The first that differs is to blame.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import pytest
import torch
from jinja2 import Template
from scipy import special, stats

from c3po_bench.models.tiny import tiny_model, tiny_tokenizer


def _torch_draws() -> list[float]:
    torch.manual_seed(0)
    return torch.randn(4).tolist()


def _torch_attention() -> list[float]:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 5, 8)
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)[
        0, 0, 4, :4
    ].tolist()


def _transformers() -> list[float]:
    with torch.no_grad():
        return tiny_model("olmoe")(torch.arange(3, 11)[None]).logits[0, -1, :4].tolist()


def _adamw() -> list[float]:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        (weight * torch.arange(1.0, 4.0) * (step + 1)).square().sum().backward()
        optimizer.step()
    return weight.tolist()


ROWS: dict[str, tuple[str, Callable[[], list[float]], list[float]]] = {
    "python's random": (
        "",
        lambda: [random.Random("a").random(), *random.Random(0).sample(range(99), 3)],
        [0.27202954, 49.0, 97.0, 53.0],
    ),
    "numpy's draws": (
        "numpy",
        lambda: np.random.default_rng(0).normal(size=3).tolist(),
        [0.12573022, -0.13210486, 0.64042265],
    ),
    "numpy's old draws": (
        "numpy",
        lambda: np.random.RandomState(0).permutation(9)[:4].tolist(),
        [7.0, 2.0, 1.0, 4.0],
    ),
    "numpy's products": (
        "numpy",
        lambda: (np.arange(9.0).reshape(3, 3) @ np.ones(3) / 7).tolist(),
        [0.42857143, 1.71428571, 3.0],
    ),
    "scipy's distributions": (
        "scipy",
        lambda: [stats.t.ppf(0.975, 7), stats.binom.cdf(3, 11, 0.4), special.betaincinv(2.5, 3.5, 0.1)],
        [2.36462425, 0.29628426, 0.17497634],
    ),
    "jinja2": ("jinja2", lambda: [float(len(Template("{{ a|join(', ') }}\n").render(a=[1, 2])))], [4.0]),
    "torch's draws": ("torch", _torch_draws, [1.54099607, -0.2934289, -2.17878938, 0.56843126]),
    "torch's softmax": (
        "torch",
        lambda: torch.softmax(torch.arange(4.0) / 3, 0).tolist(),
        [0.1416104, 0.19763322, 0.27581939, 0.38493696],
    ),
    "torch's attention": ("torch", _torch_attention, [0.09188242, -0.32846379, 0.28472409, 0.14685258]),
    "torch's AdamW": ("torch", _adamw, [0.71919441, 0.71919441, 0.71919441]),
    "tokenizers": (
        "tokenizers",
        lambda: list(map(float, tiny_tokenizer()("a dog, 3 cats").input_ids)),
        [13.0, 97.0, 16.0, 27.0, 19.0, 76.0, 97.0, 6.0, 97.0, 15.0, 13.0, 32.0, 31.0],
    ),
    "transformers": ("transformers", _transformers, [1.0546546, 0.66911089, -1.71902442, 1.33702374]),
}


@pytest.mark.parametrize("name", ROWS)
def test_no_library_has_moved_a_number(name: str) -> None:
    library, work, expected = ROWS[name]
    found = work()
    which = f"{library} {version(library)}" if library else "Python"
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6), f"{which} moved the numbers of {name}"
